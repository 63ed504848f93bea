//! Blobs of extended attributes: what is read can be written, and is read back.
#![no_main]

use cvmfs_core::xattr::Xattrs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut xattrs) = Xattrs::parse(data) else { return };
    let mut copy = Xattrs::new();
    for (key, value) in xattrs.iter() {
        copy.set(key, value).expect("what was read can be set");
        assert_eq!(xattrs.get(key), Some(value));
    }
    assert_eq!(copy, xattrs);
    let oversized = xattrs.split_oversized();
    assert!(data[0] == 2 || oversized.is_empty());
    match xattrs.encode().expect("the large ones are out") {
        None => assert!(xattrs.is_empty()),
        Some(blob) => {
            assert_eq!(blob[0], 1);
            assert_eq!(Xattrs::parse(&blob).expect("written by us"), xattrs);
        }
    }
});
