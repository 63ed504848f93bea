//! What strangers, and those who know the secret, may send.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use super::parties::{Client, Process, SECRET, answer, repository};

/// A registry that never answers: what is allowed stays in the queue.
const ALLOWED: &str = "http://127.0.0.1:1/team";

fn body(name: &str) -> String {
    format!(r#"{{"image": "127.0.0.1:1/team/{name}"}}"#)
}

fn signature(secret: &str, body: &str) -> String {
    let key = PKey::hmac(secret.as_bytes()).unwrap();
    let signed = Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(body.as_bytes()).unwrap();
    signed.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn post(client: &Client, headers: &[&str], body: &str) -> u16 {
    client.ask("POST", "/", headers, body.as_bytes()).0
}

fn entries(client: &Client) -> usize {
    client.queue()["entries"].as_array().unwrap().len()
}

#[test]
fn strangers_and_nonsense() {
    let root = repository();
    let service = Process::start(root.path(), &["--allow", ALLOWED, "--queue-length", "1100"]);
    let client = service.client();
    let known = format!("Authorization: {SECRET}");

    // Who does not know the secret.
    let good = body("app:1");
    let wrong_signature = format!("X-Signature: {}", signature("wrong secret", &good));
    let other_body = format!("X-Signature: {}", signature(SECRET, &body("app:2")));
    for headers in
        [&[][..], &["Authorization: wrong secret"], &["Authorization: "], &[&wrong_signature], &[&other_body]]
    {
        assert_eq!(post(&client, headers, &good), 401, "{headers:?}");
    }
    assert_eq!(client.metric("rejected_total{reason=\"unauthorized\"}"), 5);
    for path in ["/queue", "/events"] {
        assert_eq!(client.ask("GET", path, &[], b"").0, 401, "{path}");
        assert_eq!(client.ask("GET", path, &["X-Signature: 00"], b"").0, 401, "{path}");
    }
    for path in ["/metrics", "/healthz"] {
        assert_eq!(client.ask("GET", path, &[], b"").0, 200, "{path}");
    }
    // Nobody reads what they send.
    let mut stream = client.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 401);
    assert_eq!(entries(&client), 0);

    // What is no notification, and what is too much.
    assert_eq!(post(&client, &[&known], "{"), 400);
    assert_eq!(post(&client, &[&known], r#"{"hello": 1}"#), 400);
    assert_eq!(post(&client, &[&known], &" ".repeat((1 << 20) + 1)), 413);
    let mut stream = client.connect();
    write!(stream, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{known}\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    for _ in 0..40 {
        // It may end the connection before the end.
        let _ = write!(stream, "8000\r\n{}\r\n", " ".repeat(0x8000));
    }
    assert_eq!(answer(&mut stream).0, 413);
    assert_eq!(client.ask("GET", "/", &[&known], b"").0, 405);
    assert_eq!(client.ask("POST", "/queue", &[&known], b"").0, 405);
    assert_eq!(client.ask("GET", "/etc/passwd", &[&known], b"").0, 404);
    assert_eq!(client.ask("GET", &format!("/{}", "x".repeat(20_000)), &[], b"").0, 431);

    // Names that are no images, and images that nobody asked for: taken, so that the registry goes on, and ignored.
    for name in ["../../etc", "../../etc/passwd:1", "app:../../x", "app:1*", "a/../../b:1"] {
        assert_eq!(client.notify(&body(name)), 202, "{name}");
    }
    for name in
        ["127.0.0.1:1/other/app:1", "127.0.0.1:1/teams/app:1", "127.0.0.1/team/app:1", "evil.example.org/team/app:1"]
    {
        assert_eq!(client.notify(&format!(r#"{{"image": "{name}"}}"#)), 202, "{name}");
    }
    assert_eq!(entries(&client), 0);
    assert_eq!(client.metric("rejected_total{reason=\"bad_name\"}"), 5);
    assert_eq!(client.metric("rejected_total{reason=\"not_allowed\"}"), 4);

    // What is good, with a signature.
    let signed = format!("X-Hub-Signature-256: sha256={}", signature(SECRET, &good));
    assert_eq!(post(&client, &[&signed], &good), 202);
    assert_eq!(entries(&client), 1);
    assert_eq!(client.queue()["entries"][0]["image"], "http://127.0.0.1:1/team/app:1");

    // A thousand at once, in one notification and one by one.
    let start = Instant::now();
    let list: Vec<_> = (0..1000).map(|number| body(&format!("many:{number}"))).collect();
    assert_eq!(client.notify(&format!("[{}]", list.join(","))), 202);
    std::thread::scope(|scope| {
        for part in list.chunks(125) {
            let client = &client;
            scope.spawn(move || part.iter().for_each(|body| assert_eq!(client.notify(body), 202)));
        }
    });
    assert_eq!(entries(&client), 1001);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    // More than there is room for.
    let more: Vec<_> = (0..100).map(|number| body(&format!("more:{number}"))).collect();
    assert_eq!(client.notify(&format!("[{}]", more.join(","))), 503);
    assert_eq!(entries(&client), 1001);
    let said = service.said.lock().unwrap().clone();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(service.end("-TERM"), Some(0));
}

#[test]
fn what_was_answered_survives() {
    let root = repository();
    let mut expected = Vec::new();
    for round in 0..4 {
        let service = Process::start(root.path(), &["--allow", ALLOWED]);
        for number in 0..=round {
            let name = format!("app:{round}.{number}");
            assert_eq!(service.client().notify(&body(&name)), 202);
            expected.push(format!("http://127.0.0.1:1/team/{name}"));
        }
        // By the time of the answer.
        service.end("-KILL");
    }
    let service = Process::start(root.path(), &["--allow", ALLOWED]);
    let queue = service.client().queue();
    let mut images: Vec<_> =
        queue["entries"].as_array().unwrap().iter().map(|entry| entry["image"].as_str().unwrap().to_owned()).collect();
    images.sort();
    assert_eq!(images, expected);
    // A second one for the same repository would do everything twice.
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"))
        .arg("--root")
        .arg(root.path())
        .args(["listen", "--listen", "127.0.0.1:0", "--allow", ALLOWED])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert_eq!(service.end("-INT"), Some(0));
}

#[test]
fn others_cannot_connect_without_a_secret() {
    let root = repository();
    let run = |arguments: &[&str], secret: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"));
        command.arg("--root").arg(root.path()).arg("listen").args(arguments).env_remove("CVMFS_INGEST_SECRET");
        command.envs(secret.map(|secret| ("CVMFS_INGEST_SECRET", secret)));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--listen", "0.0.0.0:0", "--allow", ALLOWED], None);
    assert!(code == Some(1) && said.contains("needs a secret") && !said.contains("http://"), "{said}");
    let (code, said) = run(&["--listen", "127.0.0.1:0", "--allow", ALLOWED], Some("short"));
    assert!(code == Some(1) && said.contains("shorter than 8 bytes"), "{said}");
    let (code, said) = run(&["--listen", "127.0.0.1:0", "--allow", "r/../x"], None);
    assert!(code == Some(2) && said.contains("--allow"), "{said}");
    let (code, said) = run(&["--listen", "127.0.0.1:0"], None);
    assert!(code == Some(2) && said.contains("--allow"), "{said}");
}

/// Sends a byte now and then until the service has enough, and gives the time that it took.
pub(crate) fn drip(client: &Client, begin: &str, every: Duration) -> Duration {
    let mut stream = client.connect();
    stream.write_all(begin.as_bytes()).unwrap();
    stream.set_read_timeout(Some(every)).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            // An answer, or the end.
            _ => return start.elapsed(),
        }
        let _ = stream.write_all(b"a");
    }
    panic!("it still listens");
}
