//! Which servers a command talks to, and as whom. Said before or after the command.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::failure::Failure;

/// Servers and caller.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Servers")]
pub struct Target {
    /// Servers to try in turn: host:port or http://host:port. Name all, so that one may fail.
    #[arg(long, global = true, value_name = "A,B,C", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The server, if it is one.
    #[arg(long, global = true, value_name = "HOST", default_value = "localhost")]
    host: String,
    /// Its port.
    #[arg(long, global = true, value_name = "PORT", default_value = "50051", value_parser = port)]
    port: u16,
    /// Who you are: what others see as the holder.
    #[arg(long, global = true, value_name = "NAME", default_value = "cli-client")]
    pub id: String,
}

/// In a Kubernetes namespace with a service named `raftlock`, every container has RAFTLOCK_PORT=tcp://ADDRESS:PORT.
fn port(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("tcp://") {
        Some(address) => address.rsplit_once(':').map_or("", |(_, port)| port),
        None => text,
    };
    match number.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("write a number from 1 to 65535".to_owned()),
    }
}

impl Target {
    /// `host:port`s, at least one. What is said on the command line wins over the environment; there, `--endpoints`
    /// and `--host` or `--port` contradict each other.
    pub fn settled(self, matches: &ArgMatches) -> Result<Target, Failure> {
        let said = |flag| matches.value_source(flag) == Some(ValueSource::CommandLine);
        let one = said("host") || said("port");
        if said("endpoints") && one {
            return Err(Failure::Usage(
                "--endpoints and --host or --port contradict each other: give one".into(),
            ));
        }
        let mut endpoints = Vec::new();
        if !one {
            for endpoint in self.endpoints.iter().map(|given| given.trim()).filter(|given| !given.is_empty())
            {
                endpoints.push(address(endpoint)?);
            }
        }
        if endpoints.is_empty() {
            let host = match self.host.parse() {
                Ok(std::net::IpAddr::V6(address)) => format!("[{address}]"),
                _ => self.host.clone(),
            };
            endpoints.push(address(&format!("{host}:{}", self.port))?);
        }
        Ok(Target { endpoints, ..self })
    }

    /// Servers that are known to be written well.
    pub fn of(endpoints: Vec<String>) -> Target {
        Target { endpoints, host: String::new(), port: 0, id: String::new() }
    }

    /// `host:port` of each server, in the order given.
    pub fn addresses(&self) -> &[String] {
        &self.endpoints
    }
}

/// As the SDK reads it. What is wrong with it is the caller's mistake, told before anything is asked.
fn address(endpoint: &str) -> Result<String, Failure> {
    raftlock::address(endpoint).map_err(|error| Failure::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        target: Target,
    }

    fn addresses(flags: &[&str]) -> Vec<String> {
        let matches = Line::command().get_matches_from(std::iter::once(&"raftlock").chain(flags));
        let line = Line::from_arg_matches(&matches).expect("sound");
        line.target.settled(&matches).expect("sound").endpoints
    }

    #[test]
    fn without_a_flag_it_is_the_port_of_this_machine() {
        assert_eq!(addresses(&[]), ["localhost:50051"]);
        assert_eq!(addresses(&["--host", "example", "--port", "8080"]), ["example:8080"]);
        assert_eq!(addresses(&["--host", "example"]), ["example:50051"]);
        assert_eq!(addresses(&["--port", "8080"]), ["localhost:8080"]);
        assert_eq!(addresses(&["--host", "::1"]), ["[::1]:50051"]);
        assert_eq!(addresses(&["--endpoints", "a:1,http://b:2"]), ["a:1", "b:2"]);
    }

    #[test]
    fn endpoints_are_written_in_two_ways() {
        assert_eq!(address("n1:50051").ok().as_deref(), Some("n1:50051"));
        assert_eq!(address("http://n1:50051/").ok().as_deref(), Some("n1:50051"));
        assert_eq!(address("[::1]:50051").ok().as_deref(), Some("[::1]:50051"));
        for wrong in ["n1", "https://n1:1", "n1:0", "n1:1/x", "a@n1:1", ":1", "n 1:1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_kubernetes_service_variable_is_a_port_too() {
        assert_eq!(port("50051"), Ok(50051));
        assert_eq!(port("tcp://10.0.0.7:50051"), Ok(50051));
        assert!(port("0").is_err() && port("tcp://x").is_err() && port("http").is_err());
    }
}
