//! The destination of an operator's change: an address, an output descriptor of one key, or the beacon.

use ::bitcoin::{
    CompressedPublicKey, NetworkKind, ScriptBuf, XOnlyPublicKey,
    bip32::{ChildNumber, Xpub},
    secp256k1::SECP256K1,
};

use crate::{
    inputs,
    protocol::{network::Network, output::Change},
};

/// Parses the destination of change: `beacon`, an address of `network`, or a descriptor (BIP-380) of one key:
/// `addr(ADDRESS)`, `wpkh(KEY)`, `tr(KEY)`, `pkh(KEY)`. A key is a key in hex, or an extended public key with a path.
///
/// # Errors
/// What is wrong with it, in words.
pub fn change(text: &str, network: Network) -> Result<Change, String> {
    let text = text.trim();
    Ok(match text {
        "beacon" => Change::Beacon,
        _ if text.contains('(') => Change::To(descriptor(text, network)?),
        _ => Change::To(inputs::address(text, network)?.script_pubkey()),
    })
}

fn descriptor(text: &str, network: Network) -> Result<ScriptBuf, String> {
    let body = match text.split_once('#') {
        Some((body, given)) => match checksum(body) {
            Some(computed) if computed == given => body,
            Some(_) => return Err("the descriptor's checksum is wrong: is it whole?".to_owned()),
            None => return Err("the descriptor has a character that no descriptor has".to_owned()),
        },
        None => text,
    };
    let parts = body.strip_suffix(')').and_then(|body| body.split_once('('));
    let (kind, inner) = parts.ok_or_else(unknown)?;
    match kind {
        "addr" => Ok(inputs::address(inner, network)?.script_pubkey()),
        "wpkh" => Ok(ScriptBuf::new_p2wpkh(&key(inner, network)?.wpubkey_hash())),
        "pkh" => Ok(ScriptBuf::new_p2pkh(&key(inner, network)?.pubkey_hash())),
        "tr" => Ok(ScriptBuf::new_p2tr(SECP256K1, x_only(inner, network)?, None)),
        _ => Err(unknown()),
    }
}

fn unknown() -> String {
    "addr(ADDRESS), wpkh(KEY), tr(KEY) or pkh(KEY) expected: a descriptor of one key, without scripts".to_owned()
}

fn x_only(text: &str, network: Network) -> Result<XOnlyPublicKey, String> {
    match text.parse() {
        Ok(key) => Ok(key),
        Err(_) => key(text, network).map(|key| key.0.x_only_public_key().0),
    }
}

/// Parses a key. A leading `[origin]` states where the key comes from, and has no effect.
fn key(text: &str, network: Network) -> Result<CompressedPublicKey, String> {
    let text = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(unknown)?.1,
        None => text,
    };
    let (first, path) = text.split_once('/').map_or((text, None), |(first, path)| (first, Some(path)));
    let Some(path) = path.or_else(|| first.contains("pub").then_some("")) else {
        return first
            .parse()
            .map_err(|_| "a compressed public key in hex, or an extended one, expected".to_owned());
    };
    let extended: Xpub = first.parse().map_err(|error| format!("not an extended public key: {error}"))?;
    if extended.network != NetworkKind::from(network.to_bitcoin()) {
        return Err(format!("the extended key is one of another network, one of {network} is expected"));
    }
    let mut steps: Vec<ChildNumber> = Vec::new();
    for step in path.split('/').filter(|step| !step.is_empty()) {
        if step == "*" {
            return Err("a descriptor of many addresses: put the number of one in the place of *".to_owned());
        }
        let index = step.parse().map_err(|_| format!("{step}: a number that is not hardened expected"))?;
        steps.push(ChildNumber::from_normal_idx(index).map_err(|error| error.to_string())?);
    }
    let derived = extended.derive_pub(SECP256K1, &steps).map_err(|error| error.to_string())?;
    Ok(derived.to_pub())
}

/// The checksum of a descriptor without one (BIP-380); `None` if it has a character that descriptors do not have.
fn checksum(descriptor: &str) -> Option<String> {
    const INPUT: &str =
        "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ ";
    const OUTPUT: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    const GENERATORS: [u64; 5] = [0xf5_dee5_1989, 0xa9_fdca_3312, 0x1b_ab10_e32d, 0x37_06b1_677a, 0x64_4d62_6ffd];
    let step = |state: u64, symbol: u64| {
        let top = state >> 35;
        let next = ((state & 0x7_ffff_ffff) << 5) ^ symbol;
        GENERATORS.iter().enumerate().filter(|(bit, _)| top >> bit & 1 == 1).fold(next, |next, (_, by)| next ^ by)
    };
    let (mut state, mut group, mut grouped) = (1, 0, 0);
    for character in descriptor.chars() {
        let position = u64::try_from(INPUT.find(character)?).ok()?;
        state = step(state, position & 31);
        group = group * 3 + (position >> 5);
        grouped += 1;
        if grouped == 3 {
            state = step(state, group);
            (group, grouped) = (0, 0);
        }
    }
    if grouped > 0 {
        state = step(state, group);
    }
    let state = (0..8).fold(state, |state, _| step(state, 0)) ^ 1;
    let symbol = |place: u64| OUTPUT.get(usize::try_from(state >> (5 * (7 - place)) & 31).ok()?).copied();
    (0..8).map(|place| symbol(place).map(char::from)).collect()
}

#[cfg(test)]
mod tests {
    use ::bitcoin::Address;

    use super::*;

    /// BIP-32's first test vector, as a key of the test networks, and BIP-86's key of its first receiving address.
    const MASTER: &str = "tpubD6NzVbkrYhZ4XgiXtGrdW5XDAPFCL9h7we1vwNCpn8tGbBcgfVYjXyhWo4E1xkh56hjod1RhGjxbaTLV3X4FyWuejifB9jusQ46QzG87VKp";
    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    fn address(text: &str) -> Result<String, String> {
        match change(text, Network::Regtest)? {
            Change::Beacon => Ok("beacon".to_owned()),
            Change::To(script) => {
                Ok(Address::from_script(&script, Network::Regtest.to_bitcoin()).unwrap().to_string())
            }
        }
    }

    #[test]
    fn addresses_and_descriptors_are_read() {
        let wpkh = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
        assert_eq!(address("beacon").unwrap(), "beacon");
        assert_eq!(address(wpkh).unwrap(), wpkh);
        assert_eq!(address(&format!("addr({wpkh})")).unwrap(), wpkh);
        assert_eq!(address(&format!("wpkh({KEY})")).unwrap(), wpkh);
        assert_eq!(address(&format!("wpkh([d34db33f/84h/0h]{KEY})")).unwrap(), wpkh);
        let taproot = address(&format!("tr({KEY})")).unwrap();
        assert_eq!(address(&format!("tr({})", &KEY[2..])).unwrap(), taproot);
        let one = address(&format!("wpkh({MASTER}/0/1)")).unwrap();
        assert!(one != address(&format!("wpkh({MASTER}/0/2)")).unwrap() && one.starts_with("bcrt1q"));
    }

    #[test]
    fn checksums_are_those_of_bip_380() {
        assert_eq!(checksum("raw(deadbeef)").as_deref(), Some("89f8spxm"));
        let body = format!("wpkh({KEY})");
        let right = format!("{body}#{}", checksum(&body).unwrap());
        assert_eq!(address(&right).unwrap(), address(&body).unwrap());
        let wrong = right.replacen("79be", "79bf", 1);
        assert!(address(&wrong).unwrap_err().contains("checksum"));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (text, part) in [
            ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "another network"),
            ("nonsense", ""),
            ("sh(wpkh(02))", "one key"),
            ("wpkh(02)", "compressed public key"),
            (&format!("tr({KEY},pk({KEY}))"), ""),
            (&format!("wpkh({MASTER}/0/*)"), "place of *"),
            (&format!("wpkh({MASTER}/0h/1)"), "not hardened"),
            (
                "wpkh(xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29ESFjqJoCu1Rupje8YtGqsefD265TMg7usUDFdp6W1EGMcet8/0)",
                "another network",
            ),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
