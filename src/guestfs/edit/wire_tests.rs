#![allow(clippy::unwrap_used)]

use super::*;

fn orders() -> Vec<Order> {
    let time = Time { seconds: -5, nanoseconds: 999_999_999 };
    let attributes =
        Attributes { mode: 0o7777, uid: u32::MAX, mtime: time, project: Some(3), ..Attributes::default() };
    let (old, new) = (Node::Old(12), Node::New(0));
    let kinds = [
        Kind::File,
        Kind::Folder,
        Kind::Symlink(b"target".to_vec()),
        Kind::Char { major: 1, minor: 2 },
        Kind::Block { major: 3, minor: u32::MAX },
        Kind::Fifo,
        Kind::Socket,
    ];
    let mut edits: Vec<Edit> = kinds.into_iter().map(|kind| Edit::Make { id: 7, kind, attributes }).collect();
    edits.extend([
        Edit::Link { folder: old, name: b"name".to_vec(), to: new },
        Edit::Unlink { folder: new, name: vec![0xff; 300] },
        Edit::Content { node: old, size: u64::MAX },
        Edit::Target { node: new, target: Vec::new() },
        Edit::Attributes { node: old, attributes: Attributes::default() },
        Edit::SetXattr { node: old, name: b"user.a".to_vec(), value: vec![0; 5000] },
        Edit::RemoveXattr { node: new, name: b"user.a".to_vec() },
    ]);
    let mut orders: Vec<Order> = edits.into_iter().map(Order::Edit).collect();
    orders.extend([
        Order::Hello { size: 1 << 40, mode: Mode::Edit },
        Order::Hello { size: 0, mode: Mode::Scan },
        Order::Write { node: new, at: 9, len: 4 },
        Order::Finish,
        Order::Bytes(vec![3; MOST as usize]),
    ]);
    orders
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Read { at: 4096, len: MOST },
        Answer::Write { at: 1, data: vec![9; MOST as usize] },
        Answer::Put { edit: 5, skip: 1, len: 2, at: u64::MAX },
        Answer::Done,
        Answer::Failed { of_edit: true, class: 3, text: "there is no such name".to_owned() },
        Answer::Finished { made: 1, freed: u32::MAX },
        Answer::Meta { at: 0, len: 1 << 30 },
    ]
}

/// Checks one message: it comes back, a part of it never does, nor does it with a byte more.
fn check<T: std::fmt::Debug + PartialEq>(message: &T, bytes: &[u8], decode: fn(&[u8]) -> Option<T>) {
    let fields = frame(bytes).unwrap().unwrap();
    assert_eq!(framed(fields), bytes.len());
    assert_eq!(decode(fields).as_ref(), Some(message));
    for len in (0..fields.len()).step_by(1 + fields.len() / 500) {
        assert!(frame(&bytes[..len]).is_none(), "{message:?}");
        assert_eq!(decode(&fields[..len]), None, "{len} bytes of {message:?}");
    }
    assert_eq!(decode(&[fields, b"x"].concat()), None, "{message:?}");
}

#[test]
fn every_message_comes_back_and_no_part_of_it_does() {
    for order in orders() {
        let mut bytes = Vec::new();
        order.encode(&mut bytes);
        check(&order, &bytes, Order::decode);
    }
    for answer in answers() {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        check(&answer, &bytes, Answer::decode);
    }
}

#[test]
fn a_message_without_fields_or_too_long_is_none() {
    assert_eq!(frame(&[0; 4]), Some(Err(())));
    assert_eq!(frame(&[0xff; 4]), Some(Err(())));
    let most = u32::try_from(FRAME).unwrap();
    assert_eq!(frame(&most.to_le_bytes()), None);
    assert_eq!(frame(&(most + 1).to_le_bytes()), Some(Err(())));
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let mut number = 1_u64;
    for len in 0..4000_usize {
        let fields: Vec<u8> = (0..len % 97)
            .map(|_| {
                number =
                    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (number >> 59).to_le_bytes()[0]
            })
            .collect();
        if let Some(order) = Order::decode(&fields) {
            let mut bytes = Vec::new();
            order.encode(&mut bytes);
            assert_eq!(Order::decode(&bytes[4..]), Some(order));
        }
        if let Some(answer) = Answer::decode(&fields) {
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            assert_eq!(Answer::decode(&bytes[4..]), Some(answer));
        }
    }
}
