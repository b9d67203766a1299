//! The canonical priority of a connection (BEP 40): a number that both its ends come to, out of their two addresses. Pure.
//!
//! When all who are full keep the connections of the highest numbers, a swarm becomes a random graph, in which nobody is far
//! from anybody. And nobody can choose a number: of an address only the bits count that are hard to come by.

use std::net::{IpAddr, SocketAddr};

use crate::hash::crc32c;

/// The bits of a byte that count, in the part of an address that who has the rest may choose.
const FEW: u8 = 0x55;

/// The priority of a connection between two addresses, the higher the better. `None` between the two families, which have
/// none.
pub fn canonical(ours: SocketAddr, theirs: SocketAddr) -> Option<u32> {
    let mut bytes = match (ours.ip().to_canonical(), theirs.ip().to_canonical()) {
        (a, b) if a == b => pair(ours.port().to_be_bytes(), theirs.port().to_be_bytes()),
        // By the network of a provider, a region, a host: /16 and /24.
        (IpAddr::V4(a), IpAddr::V4(b)) => masked(a.octets(), b.octets(), 2),
        // /48, /56 and so on.
        (IpAddr::V6(a), IpAddr::V6(b)) => masked(a.octets(), b.octets(), 6),
        _ => return None,
    };
    let half = bytes.len() / 2;
    let (low, high) = bytes.split_at_mut(half);
    if low > high {
        low.swap_with_slice(high);
    }
    Some(crc32c(&bytes))
}

fn pair<const N: usize>(a: [u8; N], b: [u8; N]) -> Vec<u8> {
    [a, b].concat()
}

/// Both addresses, of which the first `whole` bytes count in full, and of what both share so much more that one byte of
/// difference does, too.
fn masked<const N: usize>(mut a: [u8; N], mut b: [u8; N], whole: usize) -> Vec<u8> {
    let shared = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    for byte in [&mut a, &mut b].into_iter().flat_map(|bytes| bytes.iter_mut().skip(whole.max(shared + 1))) {
        *byte &= FEW;
    }
    pair(a, b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn of(ours: &str, theirs: &str) -> Option<u32> {
        canonical(ours.parse().unwrap(), theirs.parse().unwrap())
    }

    #[test]
    fn the_vectors_of_bep_40() {
        for (ours, theirs, want) in [
            ("123.213.32.10:1", "98.76.54.32:2", Some(0xec2d_7224)),
            ("123.213.32.10:1", "123.213.32.234:2", Some(0x9956_8189)),
            ("[::ffff:123.213.32.10]:1", "98.76.54.32:2", Some(0xec2d_7224)),
            ("123.213.32.10:1", "[2001:db8::1]:2", None),
        ] {
            assert_eq!(of(ours, theirs), want, "{ours} {theirs}");
            assert_eq!(of(theirs, ours), want, "{theirs} {ours}");
        }
    }

    #[test]
    fn what_a_host_may_choose_by_itself_counts_little() {
        for (ours, a, b, same) in [
            // Of a far network, half of the bits of its second half.
            ("9.9.9.9:1", "1.2.0.0:1", "1.2.170.170:1", true),
            ("9.9.9.9:1", "1.2.0.0:1", "1.2.1.0:1", false),
            ("9.9.9.9:1", "1.2.3.4:1", "1.2.3.4:2", true),
            // Of our own /16 the third byte in full, of our own /24 the fourth.
            ("1.2.9.9:1", "1.2.0.0:1", "1.2.170.0:1", false),
            ("1.2.9.9:1", "1.2.0.0:1", "1.2.0.170:1", true),
            ("1.2.0.9:1", "1.2.0.0:1", "1.2.0.170:1", false),
            // Of our own address the port.
            ("1.2.3.4:1", "1.2.3.4:2", "1.2.3.4:3", false),
            ("[2001:db8::1]:1", "[2001:db9::]:1", "[2001:db9:0:aaaa:aaaa::]:1", true),
            ("[2001:db8::1]:1", "[2001:db9::]:1", "[2001:db9:0:1::]:1", false),
            ("[2001:db8::1]:1", "[2001:db8:0:aa00::]:1", "[2001:db8:0:ab00::]:1", false),
            ("[2001:db8::1]:1", "[2001:db8:0:aa00::]:1", "[2001:db8:0:aaaa::]:1", true),
        ] {
            assert_eq!(of(ours, a) == of(ours, b), same, "{ours}: {a} {b}");
        }
    }

    proptest! {
        #[test]
        fn both_ends_come_to_the_same(a: (u128, u16), b: (u128, u16), v4: bool) {
            let at = |(ip, port): (u128, u16)| match v4 {
                true => SocketAddr::from(((ip as u32).to_be_bytes(), port)),
                false => SocketAddr::from((ip.to_be_bytes(), port)),
            };
            prop_assert_eq!(canonical(at(a), at(b)), canonical(at(b), at(a)));
        }
    }
}
