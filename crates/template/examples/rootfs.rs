//! Builds the root file system of `base` into a cache directory and prints what came out.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    struct Print;
    impl torpor_template::Progress for Print {
        fn step(&self, what: &str) {
            eprintln!("{what}");
        }
        fn fraction(&self, _done: f64) {}
        fn note(&self, text: &str) {
            eprintln!("{text}");
        }
    }
    let cache_dir =
        std::env::args().nth(1).unwrap_or_else(|| torpor_template::rootfs::DEFAULT_CACHE_DIR.into()).into();
    let options = torpor_template::RootfsOptions { cache_dir, mirror: None };
    let rootfs = torpor_template::Rootfs::ensure(&torpor_template::Recipe::base(), &options, &Print)?;
    println!("{:#?}", rootfs.facts());
    Ok(())
}
