//! Archives: what skopeo writes is loaded, what is saved is read by skopeo and umoci, and images keep their ids on the way.

use std::process::Command;

use super::lab::{self, IMAGES, Node, Registry, Scratch};

#[test]
fn archives_of_skopeo_are_loaded_plain_and_compressed_from_files_and_pipes() {
    let scratch = Scratch::new();
    let id = lab::id_of(&lab::images().join("layers"), "latest");
    let picture = lab::picture_by_umoci(&lab::images().join("layers"), "latest");
    for kind in ["docker-archive", "oci-archive"] {
        let tar = scratch.path(kind);
        let target = format!("{kind}:{}:registry.example/layers:2", tar.display());
        lab::run(Command::new("skopeo").args(["copy", "-q", &lab::layout("layers"), &target]));
        let node = Node::new();
        assert_eq!(node.image(&["load", "-i", tar.to_str().unwrap()]), "loaded: registry.example/layers:2\n");
        assert_eq!(node.ids(), [id.as_str()]);
        lab::assert_same(&picture, &node.picture(&id), kind);
        for compress in ["gzip", "zstd", "cat"] {
            let node = Node::new();
            let loading = node.command(&["load", "-i", "-"]);
            let script = format!("{compress} <$0 | \"$@\"");
            let words = std::iter::once(tar.as_os_str()).chain(std::iter::once(loading.get_program())).chain(loading.get_args());
            lab::shell(&script, &words.collect::<Vec<_>>());
            assert_eq!(node.ids(), [id.as_str()], "{kind} {compress}");
        }
    }
}

#[test]
fn what_is_saved_is_read_by_skopeo_and_umoci_and_by_ourselves() {
    let (data, scratch) = (Scratch::new(), Scratch::new());
    let registry = Registry::new(&data);
    let node = Node::new();
    let mut names = Vec::new();
    for image in IMAGES {
        registry.push(&lab::layout(image), &format!("{image}:{image}"), &[]);
        names.push(format!("{}/{image}:{image}", registry.host()));
        node.image(&["pull", names.last().unwrap()]);
    }
    let noise = format!("{}/noise:1", registry.host());
    registry.push(&format!("oci:{}:latest", lab::noise(&scratch, 1 << 20).display()), "noise:1", &[]);
    node.image(&["pull", &noise]);
    names.push(noise);
    let tar = scratch.path("all.tar");
    let words: Vec<&str> = ["save", "-o", tar.to_str().unwrap()].into_iter().chain(names.iter().map(String::as_str)).collect();
    node.image(&words);
    for (image, name) in IMAGES.iter().zip(&names) {
        for source in [format!("oci-archive:{}:{image}", tar.display()), format!("docker-archive:{}:{name}", tar.display())] {
            let layout = scratch.path("layout");
            let target = format!("oci:{}:{image}", layout.display());
            lab::run(Command::new("skopeo").args(["copy", "-q", &source, &target]));
            let original = lab::images().join(image);
            lab::assert_same(&lab::picture_by_umoci(&original, "latest"), &lab::picture_by_umoci(&layout, image), &source);
            if source.starts_with("oci") {
                assert_eq!(lab::id_of(&layout, image), lab::id_of(&original, "latest"), "{source}");
            }
        }
    }
    let other = Node::new();
    other.image(&["load", "-i", tar.to_str().unwrap()]);
    assert_eq!(other.ids(), node.ids());
    let mut rows: Vec<String> = node.image(&["ls"]).lines().map(str::to_owned).collect();
    let mut loaded: Vec<String> = other.image(&["ls"]).lines().map(str::to_owned).collect();
    rows.sort();
    loaded.sort();
    assert_eq!(rows, loaded);
}

#[test]
fn archives_that_are_none_are_refused_and_leave_nothing() {
    let scratch = Scratch::new();
    let tar = scratch.path("whole.tar");
    lab::run(Command::new("skopeo").args(["copy", "-q", &lab::layout("nginx"), &format!("docker-archive:{}:a/b:1", tar.display())]));
    let bytes = std::fs::read(&tar).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    lab::shell("cd $0 && mkdir e && echo x >e/x && tar cf other.tar e", &[scratch.path("").as_os_str()]);
    for (path, expected) in [
        (write("half.tar", &bytes[..bytes.len() / 2]), "ends"),
        (write("text", b"this is no archive"), "ends early"),
        (scratch.path("other.tar"), "neither a docker-archive nor an OCI layout"),
    ] {
        let node = Node::new();
        let error = node.refused(&["load", "-i", path.to_str().unwrap()]);
        assert!(error.contains(expected), "{path:?}: {error}");
        node.assert_empty();
    }
}

#[test]
fn layers_stay_as_long_as_an_image_has_them() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    registry.push(&lab::layout("nginx"), "nginx:1", &[]);
    registry.push(&lab::layout("nginx"), "nginx:2", &[]);
    registry.push(&lab::layout("redis"), "redis:1", &[]);
    let node = Node::new();
    let host = registry.host();
    for name in ["nginx:1", "nginx:2", "redis:1"] {
        node.image(&["pull", &format!("{host}/{name}")]);
    }
    let layers = || std::fs::read_dir(node.store().join("layers")).unwrap().count();
    // One of the three is the base that both images stand on.
    assert_eq!((node.ids().len(), layers()), (2, 3));
    let said = node.image(&["rm", &format!("{host}/nginx:1")]);
    assert!(said.contains("untagged") && !said.contains("deleted"), "{said}");
    assert_eq!(layers(), 3);
    let said = node.image(&["rm", &format!("{host}/nginx:2")]);
    assert!(said.contains("deleted"), "{said}");
    assert_eq!((node.ids().len(), layers()), (1, 2));
    let id = node.ids()[0].trim_start_matches("sha256:")[..12].to_owned();
    node.image(&["rm", &id]);
    node.assert_empty();
    let error = node.refused(&["rm", "nothing:1"]);
    assert!(error.contains("is not here"), "{error}");
}
