//! Writes MaxMind databases, after the description of the format (MaxMind DB file format specification, version 2.0).

use std::net::Ipv6Addr;

/// Networks with the place, in degrees, of each.
pub(crate) type Networks<'a> = [(Ipv6Addr, usize, [f64; 2])];

/// A record of the search tree.
#[derive(Clone, Copy)]
enum Record {
    Nothing,
    Node(usize),
    /// Offset in the data section.
    Data(usize),
}

/// A database of cities with these networks; IPv4 addresses are `::a.b.c.d`.
pub(crate) fn database(networks: &Networks<'_>) -> Vec<u8> {
    let mut nodes = vec![[Record::Nothing; 2]];
    let mut data = Vec::new();
    for (address, bits, [latitude, longitude]) in networks {
        let offset = data.len();
        data.extend(map(&[("location", map(&[("latitude", double(*latitude)), ("longitude", double(*longitude))]))]));
        let address = u128::from(*address);
        let mut node = 0;
        for bit in 0..*bits {
            let side = usize::from(address >> (127 - bit) & 1 == 1);
            if bit + 1 == *bits {
                nodes[node][side] = Record::Data(offset);
            } else if let Record::Node(next) = nodes[node][side] {
                node = next;
            } else {
                nodes.push([Record::Nothing; 2]);
                nodes[node][side] = Record::Node(nodes.len() - 1);
                node = nodes.len() - 1;
            }
        }
    }
    let count = nodes.len();
    let mut bytes = Vec::new();
    for record in nodes.iter().flatten() {
        let value = match record {
            Record::Nothing => count,
            Record::Node(node) => *node,
            Record::Data(offset) => count + 16 + offset,
        };
        bytes.extend(&u32::try_from(value).expect("small").to_be_bytes()[1..]);
    }
    bytes.extend([0; 16]);
    bytes.extend(data);
    bytes.extend(b"\xab\xcd\xefMaxMind.com");
    bytes.extend(map(&[
        ("node_count", number(6, count)),
        ("record_size", number(5, 24)),
        ("ip_version", number(5, 6)),
        ("database_type", text("GeoLite2-City")),
        ("languages", vec![0, 4]),
        ("binary_format_major_version", number(5, 2)),
        ("binary_format_minor_version", number(5, 0)),
        ("build_epoch", [&[4, 2][..], &1_700_000_000_u32.to_be_bytes()].concat()),
        ("description", map(&[])),
    ]));
    bytes
}

fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![7 << 5 | u8::try_from(pairs.len()).expect("few")];
    for (key, value) in pairs {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes
}

fn text(text: &str) -> Vec<u8> {
    assert!(text.len() < 29, "longer texts have another form");
    [&[2 << 5 | u8::try_from(text.len()).expect("short")], text.as_bytes()].concat()
}

fn double(value: f64) -> Vec<u8> {
    [&[3 << 5 | 8][..], &value.to_be_bytes()].concat()
}

fn number(kind: u8, value: usize) -> Vec<u8> {
    let value = u32::try_from(value).expect("small").to_be_bytes();
    let size: u8 = if kind == 5 { 2 } else { 4 };
    [&[kind << 5 | size][..], &value[4 - usize::from(size)..]].concat()
}
