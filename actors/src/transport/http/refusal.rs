//! The refusals of a request, with status and code (wire format, section 5).

/// Every refusal of a request, with the status and code of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The body is not JSON, or not an envelope.
    InvalidJson,
    /// The sender's key cannot be known.
    UnknownSender,
    /// The envelope is not signed by its sender, or not now.
    InvalidEnvelope,
    /// The envelope, or authorization, was seen before.
    Replay,
    /// Too much from this DID, or from this address.
    RateLimited,
    /// A directed message without a recipient.
    MissingRecipient,
    /// The recipient is not an identity of this server.
    UnknownRecipient,
    /// The message's sender is not the envelope's.
    SenderMismatch,
    /// The message has no type.
    MissingMessageType,
    /// Only identities of this server advertise.
    NotAnActor,
    /// The request for the inbox is not its owner's.
    Unauthorized,
    /// No such route.
    NotFound,
    /// A part of the path, or of the query, is not what it has to be.
    InvalidParameter,
    /// Who signed the request may not read this.
    NotEntitled,
    /// The recipient could not store it durably just now, or it cannot be read; the same request may be sent again.
    Unavailable,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 16] = [
        Self::PayloadTooLarge,
        Self::InvalidJson,
        Self::UnknownSender,
        Self::InvalidEnvelope,
        Self::Replay,
        Self::RateLimited,
        Self::MissingRecipient,
        Self::UnknownRecipient,
        Self::SenderMismatch,
        Self::MissingMessageType,
        Self::NotAnActor,
        Self::Unauthorized,
        Self::NotFound,
        Self::InvalidParameter,
        Self::NotEntitled,
        Self::Unavailable,
    ];

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::PayloadTooLarge => 413,
            Self::InvalidJson | Self::MissingRecipient | Self::MissingMessageType | Self::InvalidParameter => 400,
            Self::UnknownSender | Self::InvalidEnvelope | Self::SenderMismatch | Self::Unauthorized => 401,
            Self::Replay => 409,
            Self::RateLimited => 429,
            Self::UnknownRecipient | Self::NotFound => 404,
            Self::NotAnActor | Self::NotEntitled => 403,
            Self::Unavailable => 503,
        }
    }

    /// The code in the body, `{"error": "<code>"}`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::PayloadTooLarge => "payload_too_large",
            Self::InvalidJson => "invalid_json",
            Self::UnknownSender => "unknown_sender",
            Self::InvalidEnvelope => "invalid_envelope",
            Self::Replay => "replay",
            Self::RateLimited => "rate_limited",
            Self::MissingRecipient => "missing_recipient",
            Self::UnknownRecipient => "unknown_recipient",
            Self::SenderMismatch => "sender_mismatch",
            Self::MissingMessageType => "missing_message_type",
            Self::NotAnActor => "not_an_actor",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::InvalidParameter => "invalid_parameter",
            Self::NotEntitled => "not_entitled",
            Self::Unavailable => "unavailable",
        }
    }
}
