//! Tars made to lead out of the layer, to hide and to replace, and what GNU tar writes. Everything is unpacked as root below a folder of
//! its own, which goes with the test.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use tar::EntryType;

use super::*;

/// A folder of its own for a layer, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("edgectl-tree-{}{}", crate::base::id::suffix(), crate::base::id::suffix()));
        fs::create_dir_all(path.join("layer")).unwrap();
        Self(path)
    }

    fn layer(&self) -> PathBuf {
        self.0.join("layer")
    }

    fn record(&self) -> LayerRecord {
        serde_json::from_slice(&fs::read(self.layer().join("layer.json")).unwrap()).unwrap()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join("layer/tree").join(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Entries of a tar: type, name, and content or the target of a link.
type Entries<'a> = &'a [(EntryType, &'a str, &'a str)];

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// The tar crate refuses names that lead out; attackers do not use it.
fn tar_of(entries: Entries) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, path, content) in entries {
        let is_link = matches!(*kind, EntryType::Symlink | EntryType::Link);
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if is_link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_entry_type(*kind);
        header.set_mode(if *kind == FOLDER { 0o750 } else { 0o640 });
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_000_000_000);
        header.set_size(if *kind == FILE { content.len() as u64 } else { 0 });
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if *kind == FILE {
            bytes.extend_from_slice(content.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn unpacked(entries: Entries) -> Scratch {
    let scratch = Scratch::new();
    let tar = tar_of(entries);
    assert_eq!(unpack(tar.as_slice(), &scratch.layer()).unwrap(), Digest::of(&tar));
    let mut again = Vec::new();
    recipe::write_tar(&scratch.layer(), &scratch.record().displaced, &mut again).unwrap();
    assert!(again == tar, "the recipe makes another tar");
    scratch
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_char_device() && it.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, c"trusted.overlay.opaque", &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
}

#[test]
fn names_that_lead_out_are_refused_and_leave_nothing_outside() {
    let check = |entries: Entries, expected: &str| {
        let scratch = Scratch::new();
        let error = format!("{:#}", unpack(tar_of(entries).as_slice(), &scratch.layer()).expect_err(expected));
        assert!(error.contains(expected), "{error}");
        assert!(!scratch.0.join("evil").exists() && !scratch.layer().join("evil").exists());
        assert!(!Path::new("/tmp/edgectl-evil").exists());
    };
    check(&[(FILE, "../evil", "x")], "leads out of the layer by \"..\"");
    check(&[(FILE, "a/../../evil", "x")], "leads out of the layer by \"..\"");
    check(&[(FOLDER, "..", "")], "leads out of the layer by \"..\"");
    check(&[(LINK, "a", "/tmp"), (FILE, "a/edgectl-evil", "x")], "leads out of the layer by a symbolic link");
    check(&[(LINK, "a", "../.."), (FILE, "a/evil", "x")], "leads out of the layer by a symbolic link");
    check(&[(LINK, "a", ".."), (FOLDER, "a/evil", "")], "leads out of the layer by a symbolic link");
    check(&[(FOLDER, "d", ""), (LINK, "d/a", "../../.."), (LINK, "b", "d/a"), (FILE, "b/evil", "x")], "by a symbolic link");
    check(&[(LINK, "a", "a"), (FILE, "a/evil", "x")], "by a symbolic link");
    check(&[(LINK, "a", "nowhere"), (FILE, "a/evil", "x")], "leads to no folder of this layer");
    check(&[(LINK, "a", "/proc/self/root"), (FILE, "a/tmp/edgectl-evil", "x")], "by a symbolic link");
    check(&[(HARD, "a", "../../../etc/passwd")], "leads out of the layer by \"..\"");
    check(&[(HARD, "a", "/etc/passwd")], "");
    check(&[(LINK, "l", "/etc"), (HARD, "a", "l/passwd")], "leads out of the layer by a symbolic link");
    check(&[(FOLDER, "d", ""), (HARD, "a", "d")], "it is a folder");
    check(&[(FILE, ".wh...", "")], "leaves the layer");
    check(&[(FILE, ".wh..", "")], "leaves the layer");
    check(&[(LINK, "l", ".."), (FILE, "l/.wh..wh..opq", "")], "by a symbolic link");
    check(&[(FILE, "", "x")], "root of a layer must be a folder");
}

#[test]
fn absolute_names_mean_the_root_of_the_layer() {
    let scratch = unpacked(&[(FOLDER, "/", ""), (FOLDER, "/nix", ""), (FILE, "/nix/file", "x"), (HARD, "/hard", "/nix/file")]);
    assert_eq!(fs::read(scratch.at("nix/file")).unwrap(), b"x");
    assert_eq!(fs::metadata(scratch.at("hard")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(scratch.at("")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn a_file_written_over_a_link_does_not_reach_where_the_link_leads() {
    let scratch =
        unpacked(&[(FILE, "target", "old"), (LINK, "a", "target"), (FILE, "a", "new"), (HARD, "b", "target"), (FILE, "b", "newer")]);
    assert_eq!(fs::read(scratch.at("target")).unwrap(), b"old");
    assert_eq!(fs::read(scratch.at("a")).unwrap(), b"new");
    assert_eq!(fs::read(scratch.at("b")).unwrap(), b"newer");
}

#[test]
fn links_within_the_layer_may_be_followed() {
    let scratch = unpacked(&[(FOLDER, "usr", ""), (FOLDER, "usr/lib", ""), (LINK, "lib", "usr/lib"), (FILE, "lib/so", "x")]);
    assert_eq!(fs::read(scratch.at("usr/lib/so")).unwrap(), b"x");
    assert!(fs::symlink_metadata(scratch.at("lib")).unwrap().is_symlink());
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let scratch = unpacked(&[
        (FOLDER, "d", ""),
        (FILE, "d/.wh.gone", ""),
        (FOLDER, "o", ""),
        (FILE, "o/.wh..wh..opq", ""),
        (FILE, "o/new", "x"),
        (FILE, ".wh..wh.plnk", ""),
    ]);
    assert!(is_whiteout(&scratch.at("d/gone")) && !is_opaque(&scratch.at("d")));
    assert!(is_opaque(&scratch.at("o")) && scratch.at("o/new").exists());
    assert!(!scratch.at(".wh..wh.plnk").exists());
}

#[test]
fn what_a_layer_has_itself_is_not_hidden_by_its_own_whiteout() {
    for entries in [
        &[(FOLDER, "d", ""), (FILE, "d/x", "x"), (FILE, ".wh.d", ""), (FILE, "f", "x"), (FILE, ".wh.f", "")][..],
        &[(FILE, ".wh.d", ""), (FOLDER, "d", ""), (FILE, "d/x", "x"), (FILE, ".wh.f", ""), (FILE, "f", "x")],
        &[(FILE, ".wh.d", ""), (FILE, "d/x", "x"), (FILE, ".wh.f", ""), (FILE, "f", "x")],
    ] {
        let scratch = unpacked(entries);
        assert!(is_opaque(&scratch.at("d")), "{entries:?}");
        assert_eq!(fs::read(scratch.at("d/x")).unwrap(), b"x");
        assert_eq!(fs::read(scratch.at("f")).unwrap(), b"x");
    }
}

#[test]
fn later_entries_replace_earlier_ones_and_the_tar_can_still_be_made_again() {
    let scratch = unpacked(&[
        (FILE, "a", "first"),
        (FILE, "./a", "second"),
        (FILE, "a", "third"),
        (FOLDER, "d", ""),
        (FILE, "d/x", "in a folder"),
        (FILE, "d/x", "twice"),
        (FILE, "d", "now a file"),
        (FILE, "d", ""),
        (FOLDER, "a", ""),
        (FILE, "a/b", "fourth"),
        (LINK, "l", "a"),
        (FOLDER, "l", ""),
    ]);
    assert_eq!(fs::read(scratch.at("a/b")).unwrap(), b"fourth");
    assert_eq!(fs::read(scratch.at("d")).unwrap(), b"");
    assert!(fs::symlink_metadata(scratch.at("l")).unwrap().is_dir());
}

#[test]
fn implied_folders_adopt_what_lies_below_them() {
    let lowest = unpacked(&[(FOLDER, "d", ""), (FOLDER, "d/e", ""), (FOLDER, "other", ""), (FILE, "file", "x")]);
    let middle = unpacked(&[(FOLDER, "other", "")]);
    let tar =
        tar_of(&[(FILE, "d/e/new", "x"), (FILE, "d/.wh.old", ""), (FILE, "file/new", "x"), (FILE, "own/new", "x"), (FOLDER, "own", "")]);
    let scratch = Scratch::new();
    unpack(tar.as_slice(), &scratch.layer()).unwrap();
    let record = scratch.record();
    assert_eq!(record.implied, BTreeSet::from([b"d".to_vec(), b"d/e".to_vec(), b"file".to_vec()]));
    for _ in 0..2 {
        adopt(&scratch.at(""), &record.implied, &[middle.at(""), lowest.at("")]).unwrap();
        for (path, expected) in [("d", (5, 0o750, true)), ("d/e", (5, 0o750, true)), ("file", (0, 0o755, false)), ("own", (5, 0o750, true))]
        {
            let it = fs::metadata(scratch.at(path)).unwrap();
            assert_eq!((it.uid(), it.mode() & 0o7777, it.mtime() == 1_000_000_000), expected, "{path}");
        }
    }
}

#[test]
fn owners_modes_and_times_are_the_entries_own_also_of_folders_written_to_later() {
    let many: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
    let mut entries: Vec<_> = many.iter().map(|name| (FOLDER, name.as_str(), "")).collect();
    let files: Vec<String> = many.iter().map(|name| format!("{name}/file")).collect();
    entries.extend(files.iter().map(|name| (FILE, name.as_str(), "x")));
    let scratch = unpacked(&entries);
    for (path, mode) in many.iter().map(|it| (it, 0o750)).chain(files.iter().map(|it| (it, 0o640))) {
        let it = fs::metadata(scratch.at(path)).unwrap();
        assert_eq!((it.uid(), it.gid(), it.mode() & 0o7777, it.mtime()), (5, 6, mode, 1_000_000_000), "{path}");
    }
}

#[test]
fn extended_attributes_that_command_overlayfs_are_dropped() {
    let attributes: BTreeMap<&str, &[u8]> =
        BTreeMap::from([("user.a", &b"1"[..]), ("trusted.overlay.redirect", b"/etc"), ("user.overlay.opaque", b"y")]);
    let mut builder = tar::Builder::new(Vec::new());
    let records: Vec<_> = attributes.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
    builder.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value))).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(FOLDER);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, "d", &b""[..]).unwrap();
    let scratch = Scratch::new();
    unpack(builder.into_inner().unwrap().as_slice(), &scratch.layer()).unwrap();
    let mut list = [0; 256];
    let length = rustix::fs::llistxattr(scratch.at("d"), &mut list[..]).unwrap();
    let names = String::from_utf8_lossy(&list[..length]).into_owned();
    assert!(!names.contains("overlay"), "{names}");
    assert!(names.contains("user.a"), "{names}");
}

#[test]
fn what_gnu_tar_writes_is_unpacked_as_gnu_tar_does() {
    let scratch = Scratch::new();
    let source = scratch.0.join("source");
    let script = "mkdir -p $0/d/e && cd $0 && echo a >a && ln a hard && ln -s a soft && mkfifo fifo && mknod null c 1 3 && mknod block b 7 1 \
        && truncate -s 5M sparse && echo end >>sparse && printf x | dd of=sparse bs=1 seek=1M conv=notrunc 2>/dev/null && chmod 4711 a \
        && chown 3:4 d && chmod 1777 d && long=$(printf 'l%.0s' $(seq 180)) && mkdir $long && echo x >$long/$long && touch -d @1.5 a && touch -d @7 d";
    assert!(Command::new("sh").args(["-c", script]).arg(&source).status().unwrap().success());
    let picture = |folder: &Path| {
        let script = "cd $0 && find . -printf '%P %y %m %U %G %s %T@ %l %n\\n' | sort && find . -type f -exec sha256sum {} + | sort";
        String::from_utf8(Command::new("sh").args(["-c", script]).arg(folder).output().unwrap().stdout).unwrap()
    };
    for format in ["gnu", "posix", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0", "oldgnu"] {
        let tar = scratch.0.join("tar");
        let script = format!("tar -C $0 --sparse --format={format} -cf $1 .");
        assert!(Command::new("sh").args(["-c", &script]).args([&source, &tar]).status().unwrap().success());
        fs::create_dir_all(scratch.layer()).unwrap();
        let bytes = fs::read(&tar).unwrap();
        unpack(bytes.as_slice(), &scratch.layer()).unwrap();
        let (expected, found) = (picture(&source), picture(&scratch.at("")));
        let whole_seconds = |text: &str| text.replace(".5000000000", ".0000000000");
        if format.starts_with("p") {
            assert_eq!(found, expected, "{format}");
        } else {
            // These formats have whole seconds only.
            let strip = |text: &str| whole_seconds(&text.lines().map(|line| strip_fraction(line) + "\n").collect::<String>());
            assert_eq!(strip(&found), strip(&expected), "{format}");
        }
        let sparse = fs::metadata(scratch.at("sparse")).unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "{format}: the holes are filled");
        let mut again = Vec::new();
        recipe::write_tar(&scratch.layer(), &scratch.record().displaced, &mut again).unwrap();
        assert!(again == bytes, "{format}: the recipe makes another tar");
        fs::remove_dir_all(scratch.layer()).unwrap();
    }
}

/// The seventh word of a line of `find` is a time.
fn strip_fraction(line: &str) -> String {
    line.split(' ')
        .map(|word| word.split_once('.').filter(|(_, f)| f.len() == 10).map_or(word, |(whole, _)| whole))
        .collect::<Vec<_>>()
        .join(" ")
}
