//! The wire code in `src/gen` is generated from `raftlock/v1/*.proto` and checked in, so that nobody who builds
//! RaftLock or its SDK needs protoc. This test generates it anew and fails when the two differ.
//! `UPDATE_GENERATED=1 cargo test -p raftlock-proto` writes what it made.

use std::fs;
use std::path::Path;

use prost::Message;

#[test]
fn generated_code_is_what_the_proto_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = tempfile::tempdir().expect("a temporary folder");
    generate(root, scratch.path());

    let checked_in = root.join("src/gen");
    for entry in fs::read_dir(scratch.path()).expect("just written") {
        let made = entry.expect("just written").path();
        let name = made.file_name().expect("a file has a name");
        let kept = checked_in.join(name);
        let made_bytes = fs::read(&made).expect("just written");
        assert!(!made_bytes.is_empty(), "{name:?} came out empty");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&kept, &made_bytes).expect("src/gen can be written");
            continue;
        }
        let kept_bytes = fs::read(&kept).unwrap_or_default();
        assert!(
            kept_bytes == made_bytes,
            "{} is not what the .proto files give; run `UPDATE_GENERATED=1 cargo test -p raftlock-proto`",
            kept.display()
        );
    }
}

fn generate(root: &Path, out: &Path) {
    let descriptors = protox::compile(["raftlock/v1/raftlock.proto", "raftlock/v1/peer.proto"], [root])
        .expect("the .proto files compile");
    // Reflection serves only the public file, and needs no comments. The descriptor is written by hand because
    // tonic-prost-build writes none when it is given compiled files.
    let mut public = descriptors.clone();
    public.file.retain(|file| !file.name().ends_with("peer.proto"));
    for file in &mut public.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptor.bin"), public.encode_to_vec()).expect("a temporary folder can be written");
    tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::WireCodec")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("the wire code can be generated");
}
