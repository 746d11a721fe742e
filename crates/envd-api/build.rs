//! Compiles the protocol definitions in `proto/` to messages, server traits and clients.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["process.proto", "filesystem.proto"];
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    connectrpc_build::Config::new()
        .files(&files)
        .descriptor_set(&descriptors)
        .include_file("envd.rs")
        .compile()?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
