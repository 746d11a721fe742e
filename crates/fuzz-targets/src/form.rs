//! Multipart uploads, through the agent's reader of forms.
//!
//! The first byte says what the rest is: a body as it is, the same packed with gzip (by this target, so that what
//! comes out of the unpacking is what the fuzzer chose), or a list of files that is written as a form here and has
//! to come back as it was.

use std::io::Write;

use arbitrary::{Arbitrary, Unstructured};
use flate2::Compression;
use flate2::write::GzEncoder;
use torpor_agent::files::read_form;

use crate::{in_pieces, wait_for};

/// Files of a form with what they are called.
type Files = Vec<(Option<String>, Vec<u8>)>;

const BOUNDARY: &str = "XX";
/// One that does not occur in files by chance.
const RARE_BOUNDARY: &str = "------------------------d74496d66958873e";

/// The target, see the module's documentation.
pub fn form(data: &[u8]) {
    let [how, piece, rest @ ..] = data else { return };
    let piece = usize::from(*piece) + 1;
    match how % 4 {
        0 => drop(read_twice(rest, false, BOUNDARY, piece)),
        1 => {
            let packed = read_twice(&gzip(rest), true, BOUNDARY, piece);
            assert_eq!(packed, read_twice(rest, false, BOUNDARY, piece), "packed and as it is");
        }
        2 => drop(read_twice(rest, true, BOUNDARY, piece)),
        _ => round_trip(rest, piece),
    }
}

fn round_trip(data: &[u8], piece: usize) {
    let Ok(files) = Vec::<(String, Vec<u8>)>::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut body = Vec::new();
    let mut expected = Files::new();
    for (name, contents) in files {
        // Neither can be in a form: a line end would end the header, and this is how the next part begins.
        let name: String =
            name.chars().filter(|character| !matches!(character, '\r' | '\n' | '\0')).collect();
        if contents.windows(RARE_BOUNDARY.len()).any(|window| window == RARE_BOUNDARY.as_bytes()) {
            return;
        }
        let quoted = name.replace('\\', r"\\").replace('"', "\\\"");
        write!(
            body,
            "--{RARE_BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{quoted}\"\r\n\r\n"
        )
        .unwrap();
        body.extend_from_slice(&contents);
        body.extend_from_slice(b"\r\n");
        expected.push((Some(name).filter(|name| !name.is_empty()), contents));
    }
    write!(body, "--{RARE_BOUNDARY}--\r\n").unwrap();
    match read_twice(&body, false, RARE_BOUNDARY, piece) {
        Ok(files) => assert_eq!(files, expected),
        // A header has a largest length and may hold no control characters.
        Err(error) => {
            let impossible = |(name, _): &(Option<String>, _)| {
                name.as_ref().is_some_and(|name| name.len() > 1000 || name.chars().any(char::is_control))
            };
            assert!(expected.iter().any(impossible), "{error}");
        }
    }
}

/// Reads a form whole and in pieces, which has to be the same.
fn read_twice(body: &[u8], gzip: bool, boundary: &str, piece: usize) -> Result<Files, String> {
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let read = |piece| wait_for(read_form(&content_type, gzip, in_pieces(body, piece)));
    let whole = read(0);
    let pieces = read(piece);
    // Which of several faults is found first may depend on what is there already.
    assert_eq!(pieces.as_ref().ok(), whole.as_ref().ok(), "cut into pieces: {pieces:?}; whole: {whole:?}");
    whole
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
