//! The exchange of keys: Diffie and Hellman's, in the one group of 768 bits that message stream encryption has. Pure.
//!
//! By hand: one modulus, one operation, sixty lines, and no crates; the tests hold it against `crypto-bigint`. A number is
//! multiplied in Montgomery's form, so that nothing is ever divided. How long that takes depends on no bit of the secret: each
//! bit costs a square and a product, and which of the two counts is chosen with a mask.
//!
//! A key of 768 bits keeps nobody out who means to get in, and nobody says whose key it is. See [`super`].

/// Bytes of a public key and of what both sides share.
pub const KEY: usize = 96;
/// Bytes of a secret.
pub const SECRET: usize = 20;

const LIMBS: usize = KEY / 8;
/// A number, its lowest 64 bits first.
type Number = [u64; LIMBS];

/// The modulus: a prime, and so is half of it.
const P: Number = [
    0x0000_0000_0009_0563,
    0xf44c_42e9_a63a_3621,
    0xe485_b576_625e_7ec6,
    0x4fe1_356d_6d51_c245,
    0x302b_0a6d_f25f_1437,
    0xef95_19b3_cd3a_431b,
    0x514a_0879_8e34_04dd,
    0x020b_bea6_3b13_9b22,
    0x2902_4e08_8a67_cc74,
    0xc4c6_628b_80dc_1cd1,
    0xc90f_daa2_2168_c234,
    0xffff_ffff_ffff_ffff,
];
const ONE: Number = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const TWO: Number = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// What makes the lowest 64 bits vanish: −1 ∕ P, modulo 2⁶⁴.
const INVERSE: u64 = inverse();
/// 2⁷⁶⁸ squared: its product with a number is that number in Montgomery's form.
const SQUARE: Number = power_of_two(2 * 64 * LIMBS);

/// Both keys of one side, for one connection.
pub struct Keys {
    secret: [u8; SECRET],
    public: [u8; KEY],
}

impl Keys {
    /// The keys that follow from 160 random bits. The highest is set: a small secret is one that can be tried out.
    pub fn new(mut secret: [u8; SECRET]) -> Self {
        secret[0] |= 0x80;
        Self { secret, public: to_bytes(&power(&TWO, &secret)) }
    }

    /// What the other side is told.
    pub fn public(&self) -> &[u8; KEY] {
        &self.public
    }

    /// What both sides share and nobody else knows. `None` when the other's key is none: 0, 1 and P−1 make the outcome
    /// known to everybody, P and more is never a remainder, and our own key comes from an echo.
    pub fn share(&self, theirs: &[u8; KEY]) -> Option<[u8; KEY]> {
        let key = from_bytes(theirs);
        let last = subtract(&P, &ONE).0;
        let is_key = subtract(&key, &last).1 == 1 && subtract(&ONE, &key).1 == 1 && *theirs != self.public;
        is_key.then(|| to_bytes(&power(&key, &self.secret)))
    }
}

/// `base` to the power of `exponent`, modulo P.
fn power(base: &Number, exponent: &[u8; SECRET]) -> Number {
    let base = multiply(base, &SQUARE);
    let mut result = multiply(&ONE, &SQUARE);
    for byte in exponent {
        for bit in (0..8).rev() {
            result = multiply(&result, &result);
            let product = multiply(&result, &base);
            result = choose(byte >> bit & 1, &product, &result);
        }
    }
    multiply(&result, &ONE)
}

/// Montgomery's product: a · b ∕ 2⁷⁶⁸ modulo P, of numbers below P.
fn multiply(a: &Number, b: &Number) -> Number {
    // The sum so far, which stays below 2P, as do its two carries in one.
    let (mut sum, mut above) = ([0; LIMBS], 0u64);
    for &digit in b {
        let mut carry = 0;
        for (sum, &a) in sum.iter_mut().zip(a) {
            (*sum, carry) = add_product(*sum, a, digit, carry);
        }
        let (high, over) = above.overflowing_add(carry);
        // As much of P as makes the lowest limb zero, which is then shifted out.
        let factor = sum[0].wrapping_mul(INVERSE);
        let (_, mut carry) = add_product(sum[0], factor, P[0], 0);
        for i in 1..LIMBS {
            (sum[i - 1], carry) = add_product(sum[i], factor, P[i], carry);
        }
        let (top, over_again) = high.overflowing_add(carry);
        sum[LIMBS - 1] = top;
        above = u64::from(over) + u64::from(over_again);
    }
    let (less, borrow) = subtract(&sum, &P);
    // Less than P already, unless something stands above or nothing had to be borrowed.
    choose((borrow & (above ^ 1)) as u8, &sum, &less)
}

/// sum + a · b + carry, as low and high half. It can't overflow.
const fn add_product(sum: u64, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let wide = sum as u128 + a as u128 * b as u128 + carry as u128;
    (wide as u64, (wide >> 64) as u64)
}

/// a − b, and whether that had to borrow: 1 when b is the larger.
const fn subtract(a: &Number, b: &Number) -> (Number, u64) {
    let (mut out, mut borrow, mut i) = ([0; LIMBS], 0u64, 0);
    while i < LIMBS {
        let (part, under) = a[i].overflowing_sub(b[i]);
        let (rest, under_again) = part.overflowing_sub(borrow);
        out[i] = rest;
        borrow = under as u64 | under_again as u64;
        i += 1;
    }
    (out, borrow)
}

/// `yes` for 1, `no` for 0, without a branch.
fn choose(which: u8, yes: &Number, no: &Number) -> Number {
    let mask = u64::from(which).wrapping_neg();
    let mut out = *no;
    for (out, yes) in out.iter_mut().zip(yes) {
        *out ^= mask & (*out ^ yes);
    }
    out
}

/// −1 ∕ P modulo 2⁶⁴: Newton's step doubles the bits that are right, and an odd number is its own inverse in three.
const fn inverse() -> u64 {
    let (mut found, mut round) = (P[0], 0);
    while round < 5 {
        found = found.wrapping_mul(2u64.wrapping_sub(P[0].wrapping_mul(found)));
        round += 1;
    }
    found.wrapping_neg()
}

/// 2 to the power of `n`, modulo P, for n from 768 on: by doubling, at compile time.
const fn power_of_two(n: usize) -> Number {
    // 2⁷⁶⁸ − P, which is below P since P has its highest bit set.
    let (mut value, mut done) = (subtract(&[0; LIMBS], &P).0, 64 * LIMBS);
    while done < n {
        let (mut doubled, mut carry, mut i) = ([0; LIMBS], 0, 0);
        while i < LIMBS {
            doubled[i] = value[i] << 1 | carry;
            carry = value[i] >> 63;
            i += 1;
        }
        let (less, borrow) = subtract(&doubled, &P);
        value = if carry == 1 || borrow == 0 { less } else { doubled };
        done += 1;
    }
    value
}

fn from_bytes(bytes: &[u8; KEY]) -> Number {
    let mut number = [0; LIMBS];
    for (limb, bytes) in number.iter_mut().rev().zip(bytes.as_chunks().0) {
        *limb = u64::from_be_bytes(*bytes);
    }
    number
}

/// Always all bytes: clients that leave out zeros at the front are the reason for keys that don't match, one in 256.
fn to_bytes(number: &Number) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    for (bytes, limb) in bytes.as_chunks_mut().0.iter_mut().zip(number.iter().rev()) {
        *bytes = limb.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
    use crypto_bigint::{Odd, U768};
    use proptest::prelude::*;

    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        assert_eq!(digits.len(), 2 * N);
        let mut pairs =
            digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap());
        std::array::from_fn(|_| pairs.next().unwrap())
    }

    /// A number below 2⁶⁴ as an exponent.
    fn small(exponent: u64) -> [u8; SECRET] {
        let mut bytes = [0; SECRET];
        bytes[SECRET - 8..].copy_from_slice(&exponent.to_be_bytes());
        bytes
    }

    fn oracle() -> FixedMontyParams<{ U768::LIMBS }> {
        FixedMontyParams::new(Odd::new(U768::from_be_slice(&to_bytes(&P))).unwrap())
    }

    /// base to the power of exponent, by other means.
    fn expected(base: &[u8; KEY], exponent: &[u8; SECRET]) -> [u8; KEY] {
        let mut wide = [0; KEY];
        wide[KEY - SECRET..].copy_from_slice(exponent);
        let base = FixedMontyForm::new(&U768::from_be_slice(base), &oracle());
        let power = base.pow_bounded_exp(&U768::from_be_slice(&wide), 160).retrieve();
        power.to_be_bytes().as_ref().try_into().unwrap()
    }

    #[test]
    fn the_modulus_is_the_one_that_all_have() {
        // As it stands in the description of the protocol.
        let written = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD
                       EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A63A36210000000000090563";
        assert_eq!(to_bytes(&P), bytes(written));
        assert_eq!(P[0].wrapping_mul(INVERSE), u64::MAX);
    }

    #[test]
    fn known_answers() {
        // Computed with Python's integers.
        let (a, b) = (
            Keys::new(bytes("8182838485868788898a8b8c8d8e8f9091929394")),
            Keys::new(bytes("f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7")),
        );
        let public_a = "2bef20fa249d56dce27ca02dcf38f01dcfe7052485252c8c015f347c45988ee32a227bbe899de1ef5a023533820e3aec
                        86419aa3ca327b67656a81d1f7f7cf577fb8540c10065c5ab667eb6c70eef2595601400686c9966554cc7e95e7fb8d6b";
        let public_b = "fcb5daf5d6f90e7b5d31f661c9b47663e41c76cd2275a644d100f2b3041ad9431a8d9492522f49685ff3097e7c160081
                        b1a6ac401a14f205431ccfe989904f975149477cb1f4e568661a015ec55651087227854475f5c738325610bde6fb086e";
        let shared = "04e4f4178c98b617a7e3972c075008378360c75bc67177633c5962a5194e851aa848e16d1068c0addf11fcf11fb5bc4e
                      d484b63efbb568d5e15c4be91eec7fe24be5e516c55ff38422e53716294f7f396a6f6fe8df9fbd5e922e926c0f47b52d";
        assert_eq!(a.public(), &bytes(public_a));
        assert_eq!(b.public(), &bytes(public_b));
        assert_eq!(a.share(b.public()), Some(bytes(shared)));
        assert_eq!(b.share(a.public()), Some(bytes(shared)));
        let powers = [
            (0, "01".into()),
            (1, "02".into()),
            (767, format!("80{}", "00".repeat(95))),
            // With eight zeros at its front.
            (
                768,
                "36f0255dde973dcb3b399d747f23e32ed6fdb1f77598338bfdf44159c4ec64ddaeb5f78671cbfb22106ae64c32c5bce4\
                 cfd4f5920da0ebc8b01eca9292ae3dba1b7a4a899da181390bb3bd1659c5c9defffffffffff6fa9d"
                    .into(),
            ),
        ];
        for (exponent, power_of_two) in powers {
            let want = bytes(&format!("{power_of_two:0>192}"));
            assert_eq!(to_bytes(&power(&TWO, &small(exponent))), want, "2 to the {exponent}");
        }
        let largest = "fe9aac142f64ad4d5bca7e30bea17d62c709de9e4c5694e2b27e8c6ed82510bb57952fcce38f6a5084b9699ec34b033e
                       d1a0dbd51d70274bff40ae493f0ce2cdbd3cbd6055c9677a7eb70d29f4d8ecfbc2625316a7ae1a0d3d6605f0406bad79";
        assert_eq!(Keys::new([0xff; SECRET]).public(), &bytes(largest));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let keys = Keys::new([7; SECRET]);
        let neighbour = |n: u64| to_bytes(&subtract(&P, &[n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).0);
        let mut above = P;
        above[0] += 1;
        for (key, is_key) in [
            ([0; KEY], false),
            (to_bytes(&ONE), false),
            (to_bytes(&TWO), true),
            (neighbour(2), true),
            (neighbour(1), false),
            (neighbour(0), false),
            (to_bytes(&above), false),
            ([0xff; KEY], false),
            (*keys.public(), false),
        ] {
            assert_eq!(keys.share(&key).is_some(), is_key, "{key:?}");
        }
    }

    #[test]
    fn the_largest_numbers_carry_right() {
        let last = subtract(&P, &ONE).0;
        let mut odd = [0xff; SECRET];
        // −1 to an odd and to an even power.
        assert_eq!(power(&last, &odd), last);
        odd[SECRET - 1] = 0xfe;
        assert_eq!(power(&last, &odd), ONE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_the_oracle(
            high in prop::array::uniform32(any::<u8>()),
            middle in prop::array::uniform32(any::<u8>()),
            low in prop::array::uniform32(any::<u8>()),
            extreme in 0u8..4,
            exponent in prop::array::uniform20(any::<u8>()),
        ) {
            let mut base: [u8; KEY] = [high, middle, low].concat().try_into().unwrap();
            match extreme {
                0 => base[..64].fill(0),
                1 => base[8..64].fill(0xff),
                _ => {}
            }
            let number = from_bytes(&base);
            prop_assume!(subtract(&number, &P).1 == 1);
            prop_assert_eq!(to_bytes(&number), base);
            prop_assert_eq!(to_bytes(&power(&number, &exponent)), expected(&base, &exponent));
        }

        #[test]
        fn both_sides_share_the_same(a in prop::array::uniform20(any::<u8>()), b in prop::array::uniform20(any::<u8>())) {
            let (a, b) = (Keys::new(a), Keys::new(b));
            prop_assume!(a.public() != b.public());
            prop_assert_eq!(a.share(b.public()), b.share(a.public()));
            prop_assert!(a.share(b.public()).is_some());
        }
    }
}
