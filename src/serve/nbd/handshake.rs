//! The first part of a client's session, over anything that can be read and written.

use super::negotiation::{Negotiation, Step};
use super::option::{GREETING, HEADER, Header, MOST_DATA, client_flags};
use super::{Agreed, Facts};
use std::io::{self, Read, Write};

/// What a client did that it must not do.
pub(super) fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads past `len` bytes.
pub(super) fn skip(from: &mut impl Read, len: u32) -> io::Result<()> {
    let skipped = io::copy(&mut from.take(u64::from(len)), &mut io::sink())?;
    if skipped < u64::from(len) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Greets a client and answers its options; what it has agreed on, or `None` when it does not want to go on, or cannot.
///
/// # Errors
/// The host's; `InvalidData` when the client breaks the protocol.
pub fn negotiate(facts: &Facts, from: &mut impl Read, to: &mut impl Write) -> io::Result<Option<Agreed>> {
    to.write_all(&GREETING)?;
    let mut flags = [0; 4];
    from.read_exact(&mut flags)?;
    let no_zeroes = client_flags(flags).ok_or_else(|| broken("it sets flags that nobody offered"))?;
    let mut negotiation = Negotiation::new(facts, no_zeroes);
    let (mut data, mut answer) = (Vec::new(), Vec::new());
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let Header { option, len } =
            Header::parse(header).ok_or_else(|| broken("an option does not begin like one"))?;
        answer.clear();
        let step = match usize::try_from(len) {
            Ok(len) if len <= MOST_DATA => {
                data.resize(len, 0);
                from.read_exact(&mut data)?;
                negotiation.answer(option, &data, &mut answer)
            }
            _ => {
                skip(from, len)?;
                negotiation.refuse_long(option, &mut answer)
            }
        };
        to.write_all(&answer)?;
        match step {
            Step::More => {}
            Step::Go(agreed) => return Ok(Some(agreed)),
            Step::End => return Ok(None),
        }
    }
}
