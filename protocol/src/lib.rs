#![doc = "placeholder"]
pub mod beacon;
pub mod did;
pub mod hash;
pub mod jcs;
pub mod key;
pub mod network;
pub mod time;
