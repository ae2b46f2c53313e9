#![doc = "placeholder"]
pub mod did;
pub mod document;
pub mod hash;
pub mod jcs;
pub mod key;
pub mod network;
pub mod time;
