//! Bitcoin as the network sees it: whether a transaction of ours is valid by BIP-340 and by Bitcoin Core's own consensus
//! code. Building transactions is the protocol crate's part.

pub mod offline;
pub mod verify;
