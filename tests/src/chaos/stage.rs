//! One scenario from its beginning to the verdict: a cluster and its clients at work, what goes wrong, the calm after it,
//! the death of all nodes, and what must be there and must hold then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::future::LocalBoxFuture;

use super::crowd::{Crowd, LOCKS};
use super::links::Links;
use super::nodes::{Nodes, PATIENCE, founders, within};
use super::place::Host;
use crate::tally::Tally;

/// Clients ask for leases of this length to twice of it.
pub(crate) const TTL: Duration = Duration::from_millis(1_500);

/// The lease of what is kept, in a run and over the death of all nodes.
pub(crate) const KEPT_TTL: Duration = Duration::from_secs(60);

/// What a scenario may take beyond its length: calm, death, quiet. Above it something hangs.
const BEYOND: Duration = Duration::from_secs(240);

/// How long until nothing is left when all clients have closed: the longest lease of one that was killed.
const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// What goes wrong, and for how long.
pub(crate) struct Scenario {
    /// As in `P1`.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) what: &'static str,
    /// At full length.
    pub(crate) secs: u64,
    /// Before the nodes start.
    pub(crate) prepare: fn(&mut Stage) -> anyhow::Result<()>,
    /// For so long.
    pub(crate) run: for<'a> fn(&'a mut Stage, Duration) -> LocalBoxFuture<'a, anyhow::Result<()>>,
    /// What must have happened at least so often, at full length.
    pub(crate) bites: &'static [(&'static str, u64)],
}

/// A cluster, its links and its clients.
pub(crate) struct Stage {
    pub(crate) nodes: Nodes,
    pub(crate) links: Links,
    pub(crate) crowd: Crowd,
    pub(crate) rng: fastrand::Rng,
    pub(crate) folder: PathBuf,
    /// Who is to be up in the end.
    pub(crate) members: Vec<Host>,
    tally: Tally,
}

impl Scenario {
    /// Runs it, shortened to `scale` of its length.
    ///
    /// # Errors
    /// What was wrong, and where everything is that was written down.
    pub(crate) async fn play(
        &self,
        binary: &Path,
        links: &Links,
        seed: u64,
        scale: f64,
    ) -> anyhow::Result<Tally> {
        let folder = tempfile::Builder::new().prefix(&format!("chaos-{}-", self.name)).tempdir()?;
        links.renew();
        let length = Duration::from_secs(self.secs).mul_f64(scale);
        let mut stage = Stage {
            nodes: Nodes::new(binary, folder.path()),
            links: links.clone(),
            crowd: Crowd::new(seed, TTL, folder.path()),
            rng: fastrand::Rng::with_seed(seed),
            folder: folder.path().to_owned(),
            members: founders().collect(),
            tally: Tally::default(),
        };
        let played = tokio::time::timeout(length + BEYOND, self.play_on(&mut stage, length)).await;
        let played = played.unwrap_or_else(|_| Err(anyhow!("not through {BEYOND:?} after its length")));
        let bitten = played.and_then(|()| self.check_bites(&stage, scale));
        if let Err(error) = bitten {
            let scene = stage.nodes.scene().await;
            std::fs::write(folder.path().join("history.jsonl"), stage.crowd.history())?;
            drop(stage);
            let kept = folder.keep();
            return Err(error.context(format!(
                "{} with seed {seed}: see {}; {scene}",
                self.name,
                kept.display()
            )));
        }
        Ok(stage.tally())
    }

    async fn play_on(&self, stage: &mut Stage, length: Duration) -> anyhow::Result<()> {
        (self.prepare)(stage)?;
        stage.nodes.found().await?;
        stage.crowd.begin()?;
        (self.run)(stage, length).await.context("in its faults")?;
        stage.calm().await.context("in the calm")?;
        stage.survive().await.context("after the death of all nodes")?;
        stage.finish().await
    }

    /// A run whose faults did nothing proves nothing.
    fn check_bites(&self, stage: &Stage, scale: f64) -> anyhow::Result<()> {
        let tally = stage.tally();
        for (what, least) in self.bites {
            let least = ((*least as f64 * scale).floor() as u64).max(1);
            ensure!(
                tally.get(what) >= least,
                "invalid: {what}: {} of at least {least}; {tally}",
                tally.get(what)
            );
        }
        Ok(())
    }
}

impl Stage {
    /// Counts something that happened.
    pub(crate) fn count(&mut self, what: &str) {
        self.tally.add(what, 1);
    }

    /// Counts several.
    pub(crate) fn add(&mut self, what: &str, more: u64) {
        self.tally.add(what, more);
    }

    /// Everything that happened so far.
    pub(crate) fn tally(&self) -> Tally {
        let mut all = self.tally.clone();
        all.merge(&self.crowd.tally());
        all.merge(&self.links.tally());
        all
    }

    /// Lets time pass, and looks whether clients are well.
    pub(crate) async fn pause(&mut self, ms: std::ops::Range<u64>) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(ms))).await;
        self.crowd.check_alive()
    }

    /// One of several.
    pub(crate) fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(0..of.len())]
    }

    /// `kill -9` of a node.
    pub(crate) fn kill(&mut self, host: Host) -> anyhow::Result<()> {
        self.count("nodes killed");
        self.nodes.kill(host)
    }

    /// Every client keeps a lock of its own from here on, for so long between two renewals.
    pub(crate) async fn everybody_keeps(&mut self, what: &str, ttl: Duration) -> anyhow::Result<()> {
        for host in self.crowd.up() {
            self.crowd.keep(host, &format!("kept-{what}-{}", host.name()), ttl).await?;
        }
        Ok(())
    }

    /// Kills all nodes at once and starts them again.
    pub(crate) async fn kill_all(&mut self) -> anyhow::Result<()> {
        let up = self.nodes.up();
        up.iter().try_for_each(|host| self.kill(*host))?;
        up.iter().try_for_each(|host| self.nodes.start(*host))?;
        self.nodes.ready().await
    }

    /// What is kept is held, under its token.
    pub(crate) async fn check_kept(&mut self) -> anyhow::Result<()> {
        for (name, token) in self.crowd.kept() {
            let holder = self.nodes.holder(&name).await?;
            ensure!(
                holder == Some(token),
                "H10: {name} was kept under {token}, and the cluster says {holder:?}"
            );
            self.count("kept locks found");
        }
        Ok(())
    }

    async fn calm(&mut self) -> anyhow::Result<()> {
        self.links.heal();
        self.crowd.check_alive()?;
        let up = self.nodes.up();
        ensure!(up == self.members, "the scenario left {up:?} up, not {:?}", self.members);
        self.nodes.ready().await?;
        self.crowd.calm().await
    }

    /// Everybody holds something, and all nodes die.
    async fn survive(&mut self) -> anyhow::Result<()> {
        self.everybody_keeps("over-death", KEPT_TTL).await?;
        self.kill_all().await?;
        self.check_kept().await?;
        // What clients lost just before is the cluster's to end a little later.
        match within(PATIENCE, async || self.check_durable().await.ok()).await {
            Some(()) => Ok(()),
            None => self.check_durable().await,
        }
    }

    async fn check_durable(&self) -> anyhow::Result<()> {
        let mut names: BTreeSet<String> = (0..LOCKS).map(|at| format!("lock-{at}")).collect();
        names.extend(self.crowd.kept().into_keys());
        let mut holders = BTreeSet::new();
        for name in names {
            if let Some(token) = self.nodes.holder(&name).await? {
                holders.insert((name, token));
            }
        }
        self.crowd.check_durable(&holders)
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        self.crowd.close().await?;
        let quiet = within(QUIET_LIMIT, async || self.nodes.is_quiet().await.then_some(())).await;
        if quiet.is_none() {
            bail!("H6, H9: something is left or differs {QUIET_LIMIT:?} after all have closed");
        }
        self.nodes.check_logs()?;
        self.crowd.check()
    }
}
