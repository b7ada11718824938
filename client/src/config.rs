//! How a client is made: its endpoints, its name, its patience. Defaults and checks are here and nowhere else.

use std::time::Duration;

use crate::client::Client;
use crate::error::Error;
use crate::limits;
use crate::seams::Seams;

/// Without another word, a lock's lease is this long.
pub const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// Without another word, a call without any server ends after this long.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Environment variable that [`Client::from_env`] reads.
pub const ENDPOINTS_ENV: &str = "RAFTLOCK_ENDPOINTS";

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// Names of servers, from one string with commas or a list. Each is `host:port` or `http://host:port`.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(Vec<String>);

impl From<&str> for Endpoints {
    fn from(list: &str) -> Endpoints {
        Endpoints(vec![list.to_owned()])
    }
}

impl From<String> for Endpoints {
    fn from(list: String) -> Endpoints {
        Endpoints(vec![list])
    }
}

impl From<&String> for Endpoints {
    fn from(list: &String) -> Endpoints {
        Endpoints(vec![list.clone()])
    }
}

impl<S: AsRef<str>> From<&[S]> for Endpoints {
    fn from(list: &[S]) -> Endpoints {
        Endpoints(list.iter().map(|endpoint| endpoint.as_ref().to_owned()).collect())
    }
}

impl<S: AsRef<str>> From<Vec<S>> for Endpoints {
    fn from(list: Vec<S>) -> Endpoints {
        Endpoints::from(list.as_slice())
    }
}

impl<S: AsRef<str>, const N: usize> From<[S; N]> for Endpoints {
    fn from(list: [S; N]) -> Endpoints {
        Endpoints::from(list.as_slice())
    }
}

impl Endpoints {
    /// Distinct `host:port`s, in the order given.
    fn addresses(&self) -> Result<Vec<String>, Error> {
        let mut addresses = Vec::new();
        for endpoint in
            self.0.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|e| !e.is_empty())
        {
            let address = address(endpoint)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(Error::InvalidArgument("no endpoint given; name at least one as host:port".into()));
        }
        Ok(addresses)
    }
}

/// `host:port` of one endpoint, or [`Error::InvalidArgument`]. For the command line, which wants to say so before it has
/// a client; not part of the stable API.
#[doc(hidden)]
pub fn address(endpoint: &str) -> Result<String, Error> {
    let wrong = |why: &str| Error::InvalidArgument(format!("endpoint {endpoint:?} {why}; write host:port"));
    if endpoint.starts_with("https://") {
        return Err(wrong("asks for TLS, which this version does not speak"));
    }
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let address = address.strip_suffix('/').unwrap_or(address);
    let authority: http::uri::Authority = address.parse().map_err(|_| wrong("is no address"))?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong("is no address"));
    }
    match authority.port_u16() {
        Some(1..) => Ok(address.to_owned()),
        _ => Err(wrong("has no port")),
    }
}

/// Makes a [`Client`]. Begin with [`Client::builder`].
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example() -> Result<(), raftlock::Error> {
/// let client = raftlock::Client::builder()
///     .endpoints(["n1:50051", "n2:50051", "n3:50051"])
///     .owner("billing-7")
///     .default_ttl(Duration::from_secs(10))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` or `lazy`"]
pub struct ClientBuilder {
    endpoints: Endpoints,
    owner: Option<String>,
    default_ttl: Duration,
    connect_timeout: Duration,
    seams: Seams,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub endpoints: Vec<String>,
    pub owner: String,
    pub default_ttl: Duration,
    pub connect_timeout: Duration,
    pub seams: Seams,
}

impl ClientBuilder {
    pub(crate) fn new() -> ClientBuilder {
        ClientBuilder {
            endpoints: Endpoints::default(),
            owner: None,
            default_ttl: DEFAULT_TTL,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            seams: Seams::production(),
        }
    }

    /// The servers. Any of them will do for any lock; name all, so that one may fail.
    pub fn endpoints(mut self, endpoints: impl Into<Endpoints>) -> ClientBuilder {
        self.endpoints = endpoints.into();
        self
    }

    /// What others see as the holder, 1 to 256 bytes; for people, it need not be unique. Default: `host:pid`.
    pub fn owner(mut self, owner: impl Into<String>) -> ClientBuilder {
        self.owner = Some(owner.into());
        self
    }

    /// The lease of locks that name none, 1 s to 24 h. Default: 30 s.
    ///
    /// A short TTL frees the locks of a crashed process sooner. A long one rides out longer outages: a gap of `g`
    /// seconds without a leader costs no lock whose TTL is above 1.5·(g + 0.5 s). With the servers' default timers
    /// that is from about 4 s on, and a client warns once below it.
    pub fn default_ttl(mut self, ttl: Duration) -> ClientBuilder {
        self.default_ttl = ttl;
        self
    }

    /// How long a call lasts that finds no server, up to an hour. Default: 5 s. A wait for a lock that was in contact
    /// once goes on through outages, up to its own limit.
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.connect_timeout = timeout;
        self
    }

    /// Other surroundings than the operating system's.
    #[doc(hidden)]
    pub fn seams(mut self, seams: Seams) -> ClientBuilder {
        self.seams = seams;
        self
    }

    /// Makes the client and waits until a server has answered.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a wrong setting, [`Error::Unavailable`] if no server answers within the connect
    /// timeout, [`Error::System`] if the operating system refuses a thread.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.lazy()?;
        client.wait_for_server().await?;
        Ok(client)
    }

    /// Makes the client at once; it connects when it is first used. Needs no runtime.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] and [`Error::System`], as [`connect`](ClientBuilder::connect).
    pub fn lazy(self) -> Result<Client, Error> {
        Client::start(self.check()?)
    }

    fn check(self) -> Result<Config, Error> {
        let owner = self.owner.unwrap_or_else(default_owner);
        limits::owner(&owner)?;
        limits::ttl(self.default_ttl)?;
        if self.connect_timeout.is_zero() || self.connect_timeout > CONNECT_TIMEOUT_MAX {
            let message =
                format!("a connect timeout is above 0 and at most 1 h, not {:?}", self.connect_timeout);
            return Err(Error::InvalidArgument(message));
        }
        Ok(Config {
            endpoints: self.endpoints.addresses()?,
            owner,
            default_ttl: self.default_ttl,
            connect_timeout: self.connect_timeout,
            seams: self.seams,
        })
    }
}

fn default_owner() -> String {
    // A host's name has at most 64 bytes on Linux and 255 elsewhere; what is cut off would not fit an owner anyway.
    let mut name = [0u8; 200];
    // SAFETY: the pointer and the length describe `name`, which outlives the call.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let host =
        std::str::from_utf8(&name[..end]).ok().filter(|host| failed == 0 && limits::owner(host).is_ok());
    format!("{}:{}", host.unwrap_or("localhost"), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_in_many_ways() {
        let addresses = |endpoints: Endpoints| endpoints.addresses().unwrap();
        assert_eq!(addresses("http://n1:50051, n2:50051,".into()), ["n1:50051", "n2:50051"]);
        assert_eq!(addresses(["n1:1", "http://n1:1/", "[::1]:2"].into()), ["n1:1", "[::1]:2"]);
        assert_eq!(addresses(vec!["127.0.0.1:50051".to_owned()].into()), ["127.0.0.1:50051"]);
    }

    #[test]
    fn a_wrong_endpoint_is_named() {
        for wrong in ["", " , ", "n1", "https://n1:1", "n1:", "n1:0", "n1:99999", "n1:1/path", "u@n1:1", ":1"]
        {
            let error = Endpoints::from(wrong).addresses().unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn the_default_owner_names_the_process() {
        let owner = default_owner();
        assert!(owner.ends_with(&format!(":{}", std::process::id())), "{owner}");
        assert!(limits::owner(&owner).is_ok());
    }

    #[test]
    fn settings_are_checked() {
        let builder = || ClientBuilder::new().endpoints("n1:1");
        assert!(builder().check().is_ok());
        assert!(builder().owner("").check().is_err());
        assert!(builder().owner("a\nb").check().is_err());
        assert!(builder().default_ttl(Duration::from_millis(10)).check().is_err());
        assert!(builder().connect_timeout(Duration::ZERO).check().is_err());
        assert!(builder().connect_timeout(Duration::MAX).check().is_err());
    }
}
