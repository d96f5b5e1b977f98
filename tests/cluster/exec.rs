//! Commands in running containers, by edgectl and by the kubectls of three Debian releases, of which the oldest speaks SPDY: input, output, exit codes, terminals. All of
//! it goes through the connection that the agent dialled.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::api::kubectl;
use crate::lab::{Lab, text};
use crate::pods::{apply, cluster, phase, wait};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"], env: [{name: COLOUR, value: blue}]}
  - {name: side, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"]}
"#;

/// What runs a command, with `input` as its standard input.
pub fn run(lab: &Lab, program: &str, words: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.args(words).env("KUBECONFIG", lab.kubeconfig()).env("HOME", lab.file(""));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that does not read to the end is what some cases are about.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn check(lab: &Lab, program: &str) {
    let exec = |words: &[&str], input: &[u8]| run(lab, program, &[&["exec"], words].concat(), input);
    let told = |output: &Output| (output.status.code(), text(&output.stdout), text(&output.stderr));

    let output = exec(&["shell", "-c", "main", "--", "sh", "-c", "echo $COLOUR; echo wrong >&2; exit 7"], b"");
    assert_eq!(told(&output), (Some(7), "blue\n".into(), "wrong\ncommand terminated with exit code 7\n".into()), "{program}");
    let output = exec(&["shell", "-c", "side", "--", "sh", "-c", "echo -$COLOUR-"], b"");
    assert_eq!(told(&output), (Some(0), "--\n".into(), String::new()), "{program}");

    // Both ways at once, more than any buffer holds.
    let much: Vec<u8> = (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = exec(&["-i", "shell", "-c", "main", "--", "cat"], &much);
    assert!(
        output.status.success() && output.stdout == much,
        "{program}: {} bytes come back: {}",
        output.stdout.len(),
        text(&output.stderr)
    );
    // Input that nobody reads to its end.
    let output = exec(&["-i", "shell", "-c", "main", "--", "head", "-c", "4"], &much);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &much[..4]), "{program}: {}", text(&output.stderr));

    let output = exec(&["shell", "-c", "main", "--", "nosuch"], b"");
    let (code, _, error) = told(&output);
    assert!(code != Some(0) && error.contains("nosuch"), "{program}: {code:?} {error}");
    let output = exec(&["shell", "-c", "nosuch", "--", "true"], b"");
    assert!(text(&output.stderr).contains("container nosuch is not valid for pod shell"), "{program}: {}", text(&output.stderr));
    let output = exec(&["nobody", "--", "true"], b"");
    assert!(text(&output.stderr).contains("pods \"nobody\" not found"), "{program}: {}", text(&output.stderr));

    // script(1) gives the client a terminal, whose size the command in the container learns soon after it has begun.
    let size = "n=0; until s=$(stty size 2>/dev/null); [ -n \"$s\" ] || [ $n -gt 20000 ]; do n=$((n + 1)); done; echo $s";
    let line = format!("stty cols 91 rows 17; {program} exec -it shell -c main -- sh -c 'tty; {size}; exit 3'");
    let output = run(lab, "script", &["-qec", &line, "/dev/null"], b"");
    let said = text(&output.stdout);
    assert!(said.contains("/dev/pts/") && said.contains("17 91"), "{program}: {said}");
    assert_eq!(output.status.code(), Some(3), "{program}: {said}");
}

#[test]
fn commands_run_in_containers() {
    let lab = cluster("exec");
    apply(&lab, POD);
    wait(&lab, "shell", "Running", |pod| phase(pod) == "Running");
    for program in [env!("CARGO_BIN_EXE_edgectl"), &kubectl("sid"), &kubectl("trixie"), &kubectl("bookworm")] {
        check(&lab, program);
    }
    // The command ends with its client.
    let mut client = lab.edgectl(&["exec", "shell", "-c", "main", "--", "sleep", "4242"]).spawn().unwrap();
    let sleeps = || text(&lab.run(&["exec", "shell", "-c", "main", "--", "ps"]).stdout).contains("sleep 4242");
    crate::lab::wait_until("the command runs", sleeps);
    client.kill().unwrap();
    client.wait().unwrap();
    crate::lab::wait_until("the command has ended", || !sleeps());
    lab.end();
}
