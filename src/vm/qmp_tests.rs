#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::thread::{self, JoinHandle};

use super::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(20);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

/// A QEMU that sends `before`, then answers each request with the next of `answers`, in which
/// `$ID` stands for the request's id. It ends the connection afterwards.
fn peer(before: &'static str, answers: Vec<&'static str>) -> (UnixStream, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut out = theirs.try_clone().unwrap();
        let mut lines = BufReader::new(theirs).lines();
        out.write_all(before.as_bytes()).unwrap();
        let mut requests = Vec::new();
        for answer in answers {
            let request: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            let text = answer.replace("$ID", &request["id"].to_string());
            requests.push(request);
            out.write_all(text.as_bytes()).unwrap();
        }
        requests
    });
    (ours, thread)
}

const OK: &str = "{\"return\": {}, \"id\": $ID}\n";

#[test]
fn the_handshake_leaves_negotiation_mode_before_anything_else() {
    let (stream, peer) = peer(GREETING, vec![OK, "{\"return\": {\"status\": \"running\"}, \"id\": $ID}\n"]);
    let mut qmp = Qmp::handshake(stream, LONG).unwrap();
    assert_eq!(qmp.query_status(LONG).unwrap(), "running");
    let requests = peer.join().unwrap();
    assert_eq!(requests[0]["execute"], "qmp_capabilities");
    assert_eq!(requests[1]["execute"], "query-status");
}

#[test]
fn events_between_request_and_answer_are_kept_in_order() {
    let (stream, peer) = peer(
        GREETING,
        vec![
            OK,
            "{\"event\": \"POWERDOWN\"}\n{\"return\": {}, \"id\": $ID}\n{\"event\": \"SHUTDOWN\", \
             \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n",
        ],
    );
    let mut qmp = Qmp::handshake(stream, LONG).unwrap();
    qmp.system_powerdown(LONG).unwrap();
    assert_eq!(qmp.next_event(LONG).unwrap().unwrap().name, "POWERDOWN");
    let event = qmp.next_event(LONG).unwrap().unwrap();
    assert_eq!(
        Shutdown::from_event(&event),
        Some(Shutdown { guest: true, reason: "guest-shutdown".to_owned() })
    );
    peer.join().unwrap();
    assert!(matches!(qmp.next_event(LONG), Err(QmpError::Closed)));
}

#[test]
fn lines_that_are_no_message_are_skipped() {
    let (stream, peer) = peer(
        "\n\u{1}garbage\n[1]\n{\"unknown\": 1}\n{\"QMP\": 5}\n",
        vec!["null\n{\"event\": 7}\n{\"return\": 1, \"id\": 999}\n{\"return\": {}, \"id\": $ID}\n"],
    );
    assert!(Qmp::handshake(stream, LONG).is_ok());
    peer.join().unwrap();
}

#[test]
fn a_refusal_carries_the_words_of_qemu() {
    let (stream, peer) = peer(
        GREETING,
        vec![OK, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}, \"id\": $ID}\n"],
    );
    let mut qmp = Qmp::handshake(stream, LONG).unwrap();
    let error = qmp.execute("frob", &json!({"a": 1}), LONG).unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused frob: no such thing");
    assert_eq!(peer.join().unwrap()[1]["arguments"]["a"], 1);
}

#[test]
fn a_silent_peer_costs_no_more_than_the_limit() {
    let (stream, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(Qmp::handshake(stream, SHORT), Err(QmpError::TimedOut)));
}

#[test]
fn a_peer_that_ends_at_once_is_reported_as_closed() {
    let (stream, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Qmp::handshake(stream, LONG), Err(QmpError::Closed)));
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let (stream, mut theirs) = UnixStream::pair().unwrap();
    let writer = thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        while theirs.write_all(&chunk).is_ok() {}
    });
    assert!(matches!(Qmp::handshake(stream, LONG), Err(QmpError::TooLong)));
    writer.join().unwrap();
}

#[test]
fn quit_succeeds_when_the_connection_ends_instead_of_an_answer() {
    let (stream, peer) = peer(GREETING, vec![OK, ""]);
    let mut qmp = Qmp::handshake(stream, LONG).unwrap();
    qmp.quit(LONG).unwrap();
    peer.join().unwrap();
}
