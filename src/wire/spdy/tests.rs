//! Both ends of a connection, in memory: streams, their ends and bounds, and the frames themselves.

use super::*;

/// Both ends of a connection whose bytes arrive in pieces of `piece_bytes`.
fn pair(piece_bytes: usize) -> (Session, Session) {
    let (to_server, at_server) = channel::bounded(1);
    let (to_client, at_client) = channel::bounded(1);
    let end = |incoming: Receiver<Bytes>, to_other: Sender<Bytes>, side| {
        Session::new(Box::pin(incoming.map(Ok)), side, move |outgoing| async move {
            while let Ok(frame) = outgoing.next().await {
                for piece in frame.chunks(piece_bytes) {
                    to_other.send(Bytes::copy_from_slice(piece)).await?;
                }
            }
            Ok(())
        })
    };
    (end(at_client, to_server, Side::Client), end(at_server, to_client, Side::Server))
}

/// The stream as its opener has it, and as the other side does.
async fn stream(opener: &Session, acceptor: &Session, headers: &[(&str, &str)]) -> (Stream, Stream) {
    let accept = async { acceptor.accept().await.unwrap() };
    let (near, far) = futures_lite::future::zip(opener.open(headers), accept).await;
    (near.unwrap(), far)
}

async fn read_all(stream: &Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = stream.read().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}

#[test]
fn streams_carry_bytes_both_ways_and_end_one_way_at_a_time() {
    for piece_bytes in [1, 7, 1 << 20] {
        task::run(async {
            let (client, server) = pair(piece_bytes);
            let (near, far) = stream(&client, &server, &[("streamType", "data"), ("port", "80")]).await;
            assert_eq!((far.header("streamtype"), far.header("port"), far.header("other")), ("data", "80", ""));
            let (other_near, other_far) = stream(&client, &server, &[]).await;
            assert_eq!((near.id(), other_far.id()), (1, 3));
            let much = vec![7; 3 * PIECE_BYTES + 1];
            let up = async {
                near.write(&much).await.unwrap();
                near.finish().await;
            };
            assert_eq!(futures_lite::future::zip(up, read_all(&far)).await.1, much);
            // The way back is open still.
            far.write(b"answer").await.unwrap();
            far.finish().await;
            assert_eq!(read_all(&near).await, b"answer");
            other_far.write(b"x").await.unwrap();
            assert_eq!(other_near.read().await.unwrap().unwrap(), "x");
            // The server may open some too.
            let (near, far) = stream(&server, &client, &[("a", "b")]).await;
            assert_eq!((near.id(), far.header("a")), (2, "b"));
        });
    }
}

#[test]
fn a_stream_that_is_dropped_breaks_off_and_the_connection_goes_on() {
    task::run(async {
        let (client, server) = pair(1 << 20);
        let (near, far) = stream(&client, &server, &[]).await;
        let (other_near, other_far) = stream(&client, &server, &[]).await;
        drop(near);
        assert!(far.read().await.is_err());
        assert!(far.write(b"x").await.is_err());
        other_near.write(b"y").await.unwrap();
        assert_eq!(other_far.read().await.unwrap().unwrap(), "y");
        drop(client);
        assert!(other_far.read().await.is_err());
        assert!(server.accept().await.is_none());
    });
}

#[test]
fn a_stream_beyond_the_bound_is_refused() {
    task::run(async {
        let (client, server) = pair(1 << 20);
        let mut streams = Vec::new();
        for _ in 0..STREAMS_MAX {
            streams.push(stream(&client, &server, &[]).await);
        }
        // The client's own bound is told before it asks; a server is asked all the same.
        assert!(client.open(&[]).await.is_err());
        let forgotten = streams.pop().unwrap();
        client.shared.live.borrow_mut().remove(&forgotten.0.id);
        assert!(client.open(&[]).await.is_err());
        drop(forgotten);
        stream(&client, &server, &[]).await;
    });
}

#[test]
fn a_reader_that_is_slow_holds_its_writer_back() {
    task::run(async {
        let (client, server) = pair(1 << 20);
        let (near, far) = stream(&client, &server, &[]).await;
        let much = vec![1; 100 * PIECE_BYTES];
        let written = Rc::new(Cell::new(0));
        let writing = async {
            for piece in much.chunks(PIECE_BYTES) {
                near.write(piece).await.unwrap();
                written.set(written.get() + 1);
            }
            near.finish().await;
        };
        let mut writing = Box::pin(writing);
        for _ in 0..1000 {
            assert!(futures_lite::future::poll_once(&mut writing).await.is_none(), "all was taken");
            futures_lite::future::yield_now().await;
        }
        assert!(written.get() < 3 * QUEUE_MAX, "{} pieces wait", written.get());
        assert_eq!(futures_lite::future::zip(writing, read_all(&far)).await.1.len(), much.len());
    });
}

/// What a server sends to a client that sends these frames.
fn answers(frames: &[Bytes]) -> Vec<u8> {
    task::run(async {
        let (sender, sent) = channel::unbounded();
        let incoming = futures_lite::stream::iter(frames.to_vec()).map(Ok);
        let server = Session::new(Box::pin(incoming), Side::Server, |outgoing| async move {
            while let Ok(frame) = outgoing.next().await {
                sender.send(frame).await?;
            }
            Ok(())
        });
        let mut answers = Vec::new();
        while let Some(stream) = server.accept().await {
            std::mem::forget(stream);
        }
        while let Ok(frame) = sent.recv().await {
            answers.extend_from_slice(&frame);
        }
        answers
    })
}

#[test]
fn frames_are_answered_as_the_specification_says() {
    let syn = |id: u32, first| control(SYN_STREAM, 0, &[&id.to_be_bytes()[..], &[0; 6], &headers::deflate(&[], first)].concat());
    let reply = |id: u32, first| control(SYN_REPLY, 0, &[&id.to_be_bytes()[..], &headers::deflate(&[], first)].concat());
    let ping = |id: u32| control(PING, 0, &id.to_be_bytes());
    assert_eq!(answers(&[ping(1), ping(2)]), ping(1));
    assert_eq!(answers(&[syn(1, true), syn(3, false)]), [reply(1, true), reply(3, false)].concat());
    // Numbers that go back, or are the server's own.
    for wrong in [1, 2] {
        assert_eq!(answers(&[syn(1, true), syn(wrong, false)]), [reply(1, true), reset(wrong, PROTOCOL_ERROR)].concat());
    }
    // SETTINGS, WINDOW_UPDATE, a GOAWAY, DATA for a stream that is none.
    let ignored = [control(4, 0, &[0; 4]), control(9, 0, &[0; 8]), control(7, 0, &[0; 8]), data(5, FIN, b"x"), ping(1)];
    assert_eq!(answers(&ignored), ping(1));
    // What follows a frame that is none is not looked at.
    for bad in [control(PING, 0, &[1]), Bytes::from_static(b"GET / HTTP/1.1\r\n"), control(SYN_STREAM, 0, &[0; 70_000])] {
        assert_eq!(answers(&[bad.clone(), ping(1)]), b"", "{:?}", &bad[..8]);
    }
}
