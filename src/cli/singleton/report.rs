//! What the command prints.

use ::bitcoin::{Amount, consensus::encode::serialize_hex};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::send::Sent;
use crate::{
    bitcoin::fees::{rate_of, sat_per_vb},
    protocol::{did::Did, document::InitialBeaconKind, update::SignedUpdate},
    singleton::{Prepared, places::Place},
};

/// The result of the command.
pub(super) struct Shown<'a> {
    pub(super) did: &'a Did,
    pub(super) update: &'a SignedUpdate,
    /// The Singleton beacons of the document.
    pub(super) places: &'a [Place],
    pub(super) made: Option<(&'a Place, &'a Prepared)>,
    pub(super) sent: Option<Sent>,
}

/// `None` while it depends on the signature, as for P2PKH.
pub(super) fn txid(prepared: &Prepared) -> Option<String> {
    let unsigned = prepared.announcement.unsigned();
    let segwit = prepared.announcement.beacon().kind() != InitialBeaconKind::P2pkh;
    prepared.signed.as_ref().or(segwit.then_some(unsigned)).map(|tx| tx.compute_txid().to_string())
}

impl Shown<'_> {
    pub(super) fn to_json(&self) -> Value {
        let beacon = |place: &Place| json!({ "service": place.service, "address": place.address.to_string() });
        let mut shown = json!({
            "did": self.did,
            "updateHash": self.update.hash(),
            "beacons": self.places.iter().map(beacon).collect::<Vec<_>>(),
            "sent": false,
        });
        if let Some((place, prepared)) = self.made {
            let announcement = &prepared.announcement;
            let coin = |coin: &crate::protocol::output::Coin| json!({ "outpoint": coin.outpoint, "value": coin.value.to_sat() });
            shown["transaction"] = json!({
                "beacon": beacon(place),
                "signalHex": announcement.signal(),
                "txid": txid(prepared),
                "coins": announcement.coins().iter().map(coin).collect::<Vec<_>>(),
                "fee": announcement.fee().to_sat(),
                "maxVsize": announcement.max_vsize(),
                "unsignedHex": serialize_hex(announcement.unsigned()),
                "psbt": BASE64.encode(&announcement.to_psbt().serialize()),
                "signedHex": prepared.signed.as_ref().map(serialize_hex),
            });
        }
        if let Some(sent) = &self.sent {
            sent.add_to(&mut shown);
        }
        shown
    }

    pub(super) fn to_text(&self) -> String {
        let mut lines = vec![format!("did          {}", self.did), format!("update       {}", self.update.hash())];
        let Some((place, prepared)) = self.made else {
            // It was announced before.
            if let Some(sent) = &self.sent {
                lines.push(sent.line());
                return lines.join("\n");
            }
            lines.extend(
                self.places
                    .iter()
                    .map(|place| format!("{:12} {}", place.name().trim_start_matches('#'), place.address)),
            );
            lines.push(
                "Send a coin to one of these. With --chain it is found when it is confirmed; without one, give it as --coin \
                 TXID:VOUT:SATS with its --type."
                    .to_owned(),
            );
            return lines.join("\n");
        };
        let announcement = &prepared.announcement;
        lines.push(format!("beacon       {} {}", place.name().trim_start_matches('#'), place.address));
        lines.push(format!("signal       {}", announcement.signal()));
        if let Some(txid) = txid(prepared) {
            lines.push(format!("transaction  {txid}"));
        }
        let value: Amount = announcement.coins().iter().map(|coin| coin.value).sum();
        for coin in announcement.coins() {
            lines.push(format!("spends       {} with {} sat", coin.outpoint, coin.value.to_sat()));
        }
        let (fee, vsize) = (announcement.fee(), announcement.max_vsize());
        lines.push(format!(
            "fee          {} of {} sat, at most {vsize} vB, {} sat/vB",
            fee.to_sat(),
            value.to_sat(),
            sat_per_vb(rate_of(fee, vsize))
        ));
        match &self.sent {
            Some(sent) => lines.push(sent.line()),
            None => {
                lines.push(format!("unsigned     {}", serialize_hex(announcement.unsigned())));
                lines.push(format!("psbt         {}", BASE64.encode(&announcement.to_psbt().serialize())));
                if let Some(signed) = &prepared.signed {
                    lines.push(format!("signed       {}", serialize_hex(signed)));
                }
                lines.push("Nothing is sent: send the signed transaction, or use --chain and --send.".to_owned());
            }
        }
        lines.join("\n")
    }
}
