//! Tar archives byte by byte, also such as no program writes.

#![allow(dead_code, reason = "every binary uses another part")]

/// An archive in the making.
#[derive(Clone)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// An entry of any type; `change` may alter its header.
    pub(crate) fn entry(
        mut self,
        typeflag: u8,
        name: &str,
        target: &str,
        content: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        if name.len() > 100 {
            self = self.pax(&[("path", name.as_bytes())]);
        }
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, if typeflag == b'5' { b"0000755\0" } else { b"0000644\0" });
        put(108, b"0001750\0");
        put(116, b"0003720\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000144\0");
        put(156, &[typeflag]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(b'0', name, "", content, |_| ())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"", |_| ())
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"", |_| ())
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"", |_| ())
    }

    /// Records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let digits = (1..10).find(|digits| (body.len() + digits).to_string().len() == *digits);
            let digits = digits.expect("a number that counts itself");
            content.extend_from_slice((body.len() + digits).to_string().as_bytes());
            content.extend_from_slice(&body);
        }
        self.entry(b'x', "records", "", &content, |_| ())
    }

    /// The archive with its end marker.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
