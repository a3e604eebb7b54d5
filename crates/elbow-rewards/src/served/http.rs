//! One request to a server: a time-out, bounded retries, a limit of requests side by side, and a circuit breaker.
//!
//! A request is tried again where the connection breaks, where time runs out, and after the statuses 408, 429 and 5xx, with
//! pauses that double and are spread by chance. Whatever does not end with a valid answer is
//! [`RewardError::Unavailable`], with the address, the status and the beginning of the answer, and without the token.
//!
//! After some failed requests in a row the breaker opens: requests fail at once for a while, then one is tried, once. So a
//! dead server costs a run seconds, not hours.

use super::Served;
use crate::Log;
use elbow::RewardError;
use std::{
    net::{TcpStream, ToSocketAddrs},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use ureq::{Agent, http::Uri};

/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: u64 = 64 << 20;
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// Characters of an answer that an error shows.
const SHOWN: usize = 300;

/// A server, as it is asked.
pub(super) struct Http {
    /// Name of the reward in the log.
    pub(super) name: String,
    /// Where the server is, without a slash at the end.
    pub(super) url: String,
    /// The bearer token.
    token: Option<String>,
    /// Tries after the first.
    retries: u32,
    log: Log,
    agent: Agent,
    pace: Pace,
    free: Mutex<usize>,
    freed: Condvar,
    breaker: Mutex<Breaker>,
}

/// How long to wait, and after how many failures.
struct Pace {
    /// The pause before the first retry; each is twice the one before.
    first: Duration,
    /// The longest such pause.
    longest: Duration,
    /// The longest pause that a server may ask for by `Retry-After`, in seconds; dates are not read.
    granted: Duration,
    /// Failed requests in a row that open the breaker.
    failures: u32,
    /// How long it stays open.
    open: Duration,
}

const PACE: Pace = Pace {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(30),
    granted: Duration::from_mins(1),
    failures: 5,
    open: Duration::from_secs(10),
};

/// Failed requests in a row.
#[derive(Default)]
struct Breaker {
    failures: u32,
    /// When the next request may go out, once there are too many failures.
    until: Option<Instant>,
    /// What the last failure was.
    reason: String,
}

/// A try without a valid answer.
struct Failure {
    text: String,
    /// Whether it is worth another.
    again: bool,
    /// The pause that the server asks for.
    wish: Option<Duration>,
}

impl Http {
    /// A server of a recipe, with the token it wants.
    pub(super) fn new(name: &str, served: &Served, token: Option<String>, log: Log) -> Self {
        let timeout = Duration::from_secs_f64(served.timeout);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(timeout.min(CONNECT)))
            // Servers close idle connections when they like; a request on one of those would fail for no reason.
            .max_idle_connections(0)
            .user_agent(concat!("elbow/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment knows nothing of this machine's own ports.
        let config = if is_loopback(&served.url) { config.proxy(None) } else { config };
        Self {
            name: name.to_owned(),
            url: served.url.trim_end_matches('/').to_owned(),
            token,
            retries: served.retries,
            log,
            agent: config.build().new_agent(),
            pace: PACE,
            free: Mutex::new(served.in_flight),
            freed: Condvar::new(),
            breaker: Mutex::default(),
        }
    }

    /// Posts a body to the address with `path` appended and reads the answer. `read` says what is wrong with an answer that
    /// does not follow the protocol.
    pub(super) fn post<T>(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, RewardError> {
        let _slot = Slot::take(self);
        let retries = self.admit()?;
        let url = format!("{}{path}", self.url);
        let mut tries = 1;
        loop {
            let answer = self.send(&url, content_type, body);
            let failure = match answer.and_then(|bytes| read(&bytes).map_err(|reason| self.malformed(&reason, &bytes)))
            {
                Ok(answer) => {
                    self.succeeded();
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            if !failure.again || tries > retries {
                let times = if tries > 1 { format!(" (tried {tries} times)") } else { String::new() };
                let text = format!("{url}: {}{times}", failure.text);
                self.failed(&text);
                return Err(RewardError::Unavailable(text));
            }
            let pause = self.pause(tries, failure.wish);
            let seconds = pause.as_secs_f64();
            self.say(&format!("{url}: {}; try {} of {} in {seconds:.1} s", failure.text, tries + 1, retries + 1));
            std::thread::sleep(pause);
            tries += 1;
        }
    }

    /// Asks for `path` once; any answer of status 200 is fine.
    pub(super) fn get(&self, path: &str) -> Result<(), RewardError> {
        let url = format!("{}{path}", self.url);
        let request = self.agent.get(&url);
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let answer = request.call().map_err(|error| failure(&error)).and_then(|response| self.body(response));
        answer.map(drop).map_err(|failure| RewardError::Unavailable(format!("{url}: {}", failure.text)))
    }

    /// Opens a connection and closes it again.
    pub(super) fn reach(&self) -> Result<(), RewardError> {
        let unreachable = |reason: String| RewardError::Unavailable(format!("{}: {reason}", self.url));
        let uri = self.url.parse::<Uri>().map_err(|error| unreachable(error.to_string()))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let host = uri.host().unwrap_or_default();
        let addresses = format!("{host}:{port}").to_socket_addrs().map_err(|error| unreachable(error.to_string()))?;
        let mut last = format!("there is no address of {host}");
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(unreachable(last))
    }

    /// The beginning of a text of the server: on one line, and without the token.
    pub(super) fn quote(&self, text: &str) -> String {
        let text = match &self.token {
            Some(token) => text.replace(token.as_str(), "***"),
            None => text.to_owned(),
        };
        let shown = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        match text.trim().char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", shown(&text.trim()[..end])),
            None => shown(text.trim()),
        }
    }

    /// One try.
    fn send(&self, url: &str, content_type: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = self.agent.post(url).header("content-type", content_type);
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        self.body(request.send(body).map_err(|error| failure(&error))?)
    }

    /// The body of an answer of status 200.
    fn body(&self, mut response: ureq::http::Response<ureq::Body>) -> Result<Vec<u8>, Failure> {
        let status = response.status();
        let wish = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        if status.as_u16() == 200 {
            return body.map_err(|error| failure(&error));
        }
        let text = match body {
            Ok(bytes) => self.quote(&String::from_utf8_lossy(&bytes)),
            Err(error) => format!("no body: {error}"),
        };
        let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        Err(Failure { text: format!("status {status}: {text}"), again, wish: wish.map(Duration::from_secs) })
    }

    /// An answer that came and does not follow the protocol: the next would be no better.
    fn malformed(&self, reason: &str, bytes: &[u8]) -> Failure {
        let text = self.quote(&String::from_utf8_lossy(bytes));
        Failure { text: format!("not an answer of this protocol ({reason}): {text}"), again: false, wish: None }
    }

    /// The pause after a number of tries.
    fn pause(&self, tries: u32, wish: Option<Duration>) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << (tries - 1).min(16)).min(self.pace.longest);
        // Requests that failed together do not come back together.
        let own = doubled.mul_f64(0.5 + fastrand::f64());
        own.max(wish.unwrap_or_default().min(self.pace.granted))
    }

    /// How often a request may be tried again, unless the breaker is open.
    fn admit(&self) -> Result<u32, RewardError> {
        let mut breaker = lock(&self.breaker);
        let Some(until) = breaker.until else { return Ok(self.retries) };
        let now = Instant::now();
        if now < until {
            let (n, left) = (breaker.failures, (until - now).as_secs_f64());
            let reason = &breaker.reason;
            let text =
                format!("not asked for another {left:.0} s, for {n} requests in a row failed; the last: {reason}");
            return Err(RewardError::Unavailable(text));
        }
        // This one tries; the others wait for what becomes of it.
        breaker.until = Some(now + self.pace.open);
        Ok(0)
    }

    /// The server answers.
    fn succeeded(&self) {
        let breaker = std::mem::take(&mut *lock(&self.breaker));
        if breaker.until.is_some() {
            self.say(&format!("{}: answers again", self.url));
        }
    }

    /// One more failure.
    fn failed(&self, reason: &str) {
        let mut breaker = lock(&self.breaker);
        breaker.failures += 1;
        reason.clone_into(&mut breaker.reason);
        if breaker.failures >= self.pace.failures {
            breaker.until = Some(Instant::now() + self.pace.open);
        }
        drop(breaker);
        self.say(reason);
    }

    fn say(&self, line: &str) {
        self.log.say(&self.name, line);
    }
}

/// What broke before there was a whole answer.
fn failure(error: &ureq::Error) -> Failure {
    use ureq::Error::{BadUri, BodyExceedsLimit, Http, RequireHttpsOnly, Tls, TlsRequired};
    let again =
        !matches!(error, BadUri(_) | BodyExceedsLimit(_) | Http(_) | RequireHttpsOnly(_) | Tls(_) | TlsRequired);
    Failure { text: error.to_string(), again, wish: None }
}

/// Whether an address is this machine itself.
fn is_loopback(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A request's place among those side by side.
struct Slot<'a>(&'a Http);

impl<'a> Slot<'a> {
    /// Waits until there is one.
    fn take(http: &'a Http) -> Self {
        let mut free = lock(&http.free);
        while *free == 0 {
            free = http.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Self(http)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// Locks what stays whole even where a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Protocol;
    use std::{
        io::{Read, Write},
        net::TcpListener,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// A server that gives each connection the next of the answers, the last for ever, and counts them.
    fn server(answers: Vec<&'static str>) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"body") {
                    let mut bytes = [0; 1024];
                    let n = stream.read(&mut bytes).unwrap();
                    assert!(n > 0, "the client leaves");
                    request.extend_from_slice(&bytes[..n]);
                }
                let answer = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
            }
        });
        (url, asked)
    }

    fn http(url: &str, retries: u32) -> Http {
        let pace = Pace {
            first: Duration::from_millis(4),
            longest: Duration::from_millis(8),
            granted: Duration::from_millis(40),
            failures: 2,
            open: Duration::from_millis(150),
        };
        let served = Served {
            url: url.to_owned(),
            protocol: Protocol::Compute {},
            timeout: 5.0,
            retries,
            in_flight: 2,
            batch: None,
            key_env: None,
        };
        Http { pace, ..Http::new("judge", &served, Some("sesame".into()), Log::default()) }
    }

    fn ask(http: &Http) -> Result<String, RewardError> {
        let read = |bytes: &[u8]| {
            if bytes == b"fine" { Ok("fine".to_owned()) } else { Err("it is not fine".to_owned()) }
        };
        http.post("/score", "text/plain", b"body", read)
    }

    const FINE: &str = "200 OK\r\nContent-Length: 4\r\n\r\nfine";
    const BROKEN: &str = "500 Oh\r\nContent-Length: 6\r\n\r\nbroken";

    #[test]
    fn a_request_is_tried_as_often_as_allowed() {
        let (url, asked) = server(vec![BROKEN, BROKEN, FINE]);
        let client = http(&url, 2);
        assert_eq!(ask(&client), Ok("fine".into()));
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        let said = client.log.take();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[1].starts_with(&format!("judge: {url}/score: status 500")) && said[1].contains("broken; try 3 of 3")
        );

        let (url, asked) = server(vec![BROKEN]);
        let error = ask(&http(&url, 1)).expect_err("broken").to_string();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(
            error.starts_with(&format!("{url}/score: status 500")) && error.ends_with("broken (tried 2 times)"),
            "{error}"
        );
    }

    #[test]
    fn what_would_come_again_is_not_asked_again() {
        for (answer, words) in [
            ("404 Not Found\r\nContent-Length: 2\r\n\r\nno", "status 404 Not Found: no"),
            ("302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "status 302"),
            ("200 OK\r\nContent-Length: 3\r\n\r\nbad", "not an answer of this protocol (it is not fine): bad"),
        ] {
            let (url, asked) = server(vec![answer]);
            let error = ask(&http(&url, 3)).expect_err("no answer");
            assert!(matches!(&error, RewardError::Unavailable(text) if text.contains(words)), "{error}");
            assert_eq!(asked.load(Ordering::SeqCst), 1, "{words}");
        }
    }

    #[test]
    fn a_server_says_when_to_come_again_up_to_a_limit() {
        let (url, _) = server(vec!["429 Slow\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n", FINE]);
        let start = Instant::now();
        assert_eq!(ask(&http(&url, 1)), Ok("fine".into()));
        assert!(start.elapsed() >= Duration::from_millis(40) && start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_breaker_opens_tries_one_and_closes() {
        let (url, asked) = server(vec![BROKEN, BROKEN, BROKEN, FINE, BROKEN, FINE]);
        let client = http(&url, 0);
        let asks = || (ask(&client), asked.load(Ordering::SeqCst));
        assert_eq!(asks().1, 1);
        assert_eq!(asks().1, 2);
        // Open: nobody is asked.
        let (error, count) = asks();
        let error = error.expect_err("open").to_string();
        assert!(error.starts_with("not asked for another") && error.contains("2 requests in a row failed"), "{error}");
        assert!(error.contains("broken") && count == 2, "{error}");
        // One is tried, and fails: open for as long again.
        std::thread::sleep(Duration::from_millis(160));
        assert_eq!(asks().1, 3);
        assert_eq!(asks().1, 3);
        // The next one gets an answer, and from then on one failure alone opens nothing.
        std::thread::sleep(Duration::from_millis(160));
        assert_eq!(asks(), (Ok("fine".into()), 4));
        assert!(client.log.take().last().is_some_and(|line| line.ends_with("answers again\n")));
        assert!(asks().0.is_err());
        assert_eq!(asks(), (Ok("fine".into()), 6));
    }

    #[test]
    fn while_one_is_tried_the_others_wait() {
        let client = http("http://127.0.0.1:9", 7);
        assert_eq!(client.admit(), Ok(7));
        client.failed("x");
        client.failed("x");
        assert!(client.admit().is_err());
        std::thread::sleep(Duration::from_millis(160));
        assert_eq!(client.admit(), Ok(0));
        assert!(client.admit().is_err());
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let client = http("http://127.0.0.1:9", 0);
        for (tries, least, most) in [(1, 2, 6), (2, 4, 12), (3, 4, 12), (60, 4, 12)] {
            for _ in 0..50 {
                let pause = client.pause(tries, None);
                assert!(
                    pause >= Duration::from_millis(least) && pause <= Duration::from_millis(most),
                    "{tries} {pause:?}"
                );
            }
        }
    }

    #[test]
    fn quotes_are_short_and_keep_the_token() {
        let client = http("http://127.0.0.1:9", 0);
        assert_eq!(client.quote(" wrong key 'sesame'\nsorry "), "wrong key '***' sorry");
        let long = client.quote(&"é".repeat(1000));
        assert_eq!(long, format!("{}…", "é".repeat(300)));
    }

    #[test]
    fn this_machine_is_asked_without_a_proxy() {
        for url in ["http://localhost:1", "http://127.0.0.1", "http://[::1]:8/v1", "http://127.9.9.9/"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1", "http://localhost.example:1", "http://example"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
