//! A scripted HTTP server on the loopback interface for tests of transfers: one answer for every request, in order or by
//! path.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The server; its thread ends with the process.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts a server whose `answer` gets the number of the request (from 0) and its head, and returns the raw answer.
    pub fn start(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head = read_head(&mut stream);
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(head.clone());
                    seen.len() - 1
                };
                // The client may have hung up on purpose.
                let _ = stream.write_all(&answer(number, &head));
            }
        });
        Server { address, requests }
    }

    /// Heads of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// An answer with its length, `extra` header lines (each with its line end) and a body.
pub fn answer(status: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    answer_of_length(status, extra, body, body.len())
}

/// As [`answer`], but claiming another length than it sends.
pub fn answer_of_length(status: &str, extra: &str, body: &[u8], length: usize) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
