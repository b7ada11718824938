//! The two environment variables by which a compose file sets a node up: `NODE_ID=1`, and for all nodes alike
//! `CLUSTER_NODES=node1:50051,node2:50051,node3:50051`.
//!
//! They lie between `--config` and the RAFTLOCK_ variables: what a flag or variable of ours says is not asked of these,
//! and then even a wrong value in them is nobody's problem.

use raftlock_server::config::PEER_PORT;

use super::failure::Failure;

/// Both variables, as they were given. Empty ones were not: composed environments set to nothing what they do not set.
#[derive(Debug, Default)]
pub struct ComposeEnv {
    pub node_id: Option<String>,
    pub cluster_nodes: Option<String>,
}

impl ComposeEnv {
    /// From this process's environment.
    pub fn read() -> Result<ComposeEnv, Failure> {
        let get = |name: &str| match std::env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(Failure::Usage(format!("{name}: {error}"))),
        };
        Ok(ComposeEnv { node_id: get("NODE_ID")?, cluster_nodes: get("CLUSTER_NODES")? })
    }

    /// `1` is the node named `node1`.
    pub fn node_name(&self) -> Result<Option<String>, Failure> {
        let Some(given) = &self.node_id else { return Ok(None) };
        match given.parse::<u64>() {
            Ok(number) => Ok(Some(format!("node{number}"))),
            Err(_) => Err(Failure::Usage(format!(
                "NODE_ID={given:?}: write a number, 1 for node1; RAFTLOCK_NODE_NAME takes any name"
            ))),
        }
    }

    /// The hosts of the cluster, each once, in their order. The ports are those for clients, and no node needs those
    /// of others.
    pub fn hosts(&self) -> Result<Option<Vec<String>>, Failure> {
        let Some(given) = &self.cluster_nodes else { return Ok(None) };
        let wrong = |why: String| Failure::Usage(format!("CLUSTER_NODES={given:?}: {why}"));
        let mut hosts: Vec<String> = Vec::new();
        for entry in given.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let host = host_of(entry)
                .ok_or_else(|| wrong(format!("{entry:?} is not HOST:PORT, such as node1:50051")))?;
            if hosts.iter().any(|known| known == host) {
                return Err(wrong(format!(
                    "{host} is there twice, and every node's peer port is {PEER_PORT}; RAFTLOCK_SEEDS takes peer ports"
                )));
            }
            hosts.push(host.to_owned());
        }
        if hosts.is_empty() {
            return Err(wrong("it names no node; write HOST:PORT,HOST:PORT".into()));
        }
        Ok(Some(hosts))
    }
}

/// Where the other nodes reach the node on `host`.
pub fn peer_address(host: &str) -> String {
    format!("{host}:{PEER_PORT}")
}

fn host_of(entry: &str) -> Option<&str> {
    let address: http::uri::Authority = entry.parse().ok()?;
    let host = &entry[..entry.rfind(':')?];
    (address.port_u16()? > 0 && !host.is_empty() && address.host() == host).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(given: &str) -> Result<Vec<String>, String> {
        let given = ComposeEnv { cluster_nodes: Some(given.into()), ..ComposeEnv::default() };
        given.hosts().map(Option::unwrap_or_default).map_err(|error| error.to_string())
    }

    #[test]
    fn a_number_names_the_node() {
        let name =
            |given: &str| ComposeEnv { node_id: Some(given.into()), ..ComposeEnv::default() }.node_name();
        assert_eq!(name("1").ok().flatten().as_deref(), Some("node1"));
        assert_eq!(ComposeEnv::default().node_name().ok().flatten(), None);
        for wrong in ["node1", "-1", "1.5", " 1", "99999999999999999999"] {
            let error = name(wrong).expect_err(wrong);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("NODE_ID") && error.to_string().contains(wrong), "{error}");
        }
    }

    #[test]
    fn each_entry_gives_its_host() {
        assert_eq!(hosts("node1:50051, node2:50051,").as_deref(), Ok(&["node1".into(), "node2".into()][..]));
        assert_eq!(hosts("[fd00::1]:50051").as_deref(), Ok(&["[fd00::1]".into()][..]));
        assert_eq!(ComposeEnv::default().hosts().ok().flatten(), None);
    }

    #[test]
    fn a_wrong_entry_is_named_together_with_the_variable() {
        for wrong in [
            "node2",
            "node2:",
            ":50051",
            "node2:0",
            "node2:70000",
            "http://node2:50051",
            "a@node2:1",
            "no de:1",
        ] {
            let error = hosts(&format!("node1:50051,{wrong}")).expect_err(wrong);
            assert!(error.contains("CLUSTER_NODES") && error.contains(&format!("{wrong:?}")), "{error}");
        }
        assert!(hosts(" , ").expect_err("no node").contains("names no node"));
    }

    #[test]
    fn two_nodes_on_one_host_would_share_a_peer_port() {
        let error = hosts("localhost:50051,localhost:50061").expect_err("one host");
        assert!(error.contains("CLUSTER_NODES") && error.contains("RAFTLOCK_SEEDS"), "{error}");
    }
}
