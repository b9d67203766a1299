//! The command line: what can be asked for, and how the program answers the one who asks.
//!
//! [`parse`] turns arguments into a [`Command`] with checked, typed settings. The flags that several commands have
//! stand in `shared`, those of `cat` in `cat`, those of `verify` and `cache` in
//! files of their own, with what these say. `options` reads `-o OPTS`, [`helper`] the command line of `mount.torrentfs`,
//! `config_file` what `--config` names; all turn it into a command line of `torrentfs mount`. Then: [`exit`], the exit
//! codes and the form of errors; [`log`], log lines; [`terminal`], the live display; [`remote`] and [`status`], the
//! commands that talk to a running mount; [`inspect`], the command of that name; [`demo`], the sample that the demo
//! seeds.
//!
//! Flags stand in the help text once they work. Switches for what isn't there yet are accepted and not listed,
//! so that scripts can have them already. Nothing is carried out here but `inspect` and `completions`; that is the
//! business of whoever calls [`parse`].

pub mod cache;
pub mod cat;
mod config_file;
pub mod demo;
pub mod exit;
pub mod helper;
pub mod inspect;
pub mod log;
mod options;
pub mod progress;
pub mod remote;
mod shared;
pub mod status;
pub mod terminal;
pub mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{self, CacheConfig, CatConfig, ClientConfig, Config, LogFormat, UserRef, VerifyConfig};
use crate::torrent::background::Prefetch;
use cache::CacheArgs;
use cat::CatArgs;
use exit::{Exit, Failure};
use remote::{AddArgs, DebugArgs, LimitArgs, PrefetchArgs, Remote, RemoveArgs, StatusArgs, UnmountArgs};
use shared::{ClientArgs, LoggingArgs};
use verify::VerifyArgs;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Mount torrents until told to stop.
    Mount(Box<Config>),
    /// Print a file of a torrent.
    Cat(Box<CatConfig>),
    /// Say what a torrent holds.
    Inspect {
        /// Which one, as it was written.
        source: OsString,
        /// As JSON, on one line, instead of for people.
        json: bool,
    },
    /// Check what is here of a torrent, or take another client's data over.
    Verify(Box<VerifyConfig>),
    /// Show or trim the cache folder.
    Cache(CacheConfig),
    /// Ask a running mount for something.
    Remote(Remote),
    /// Make a sample, seed it and mount it.
    Demo {
        /// Where; `None` for a temporary folder.
        mountpoint: Option<PathBuf>,
        /// As [`config::ClientConfig::verbosity`].
        verbosity: i8,
        /// As [`config::ClientConfig::log_format`].
        log_format: LogFormat,
    },
    /// Print the script that completes the command line in this shell.
    Completions(Shell),
}

/// Reads the command line; the first argument is the program's name, and may be `mount.torrentfs`. When it asks for
/// help, or can't be understood, that is printed and the code to exit with returned.
///
/// # Errors
/// [`Exit::Ok`] after help and version, and when nothing is left to be done; [`Exit::Usage`] after a complaint.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    let args: Vec<OsString> = args.into_iter().collect();
    let called = helper::is_called(&args);
    let mount = mount_command();
    let read = match called {
        true => match helper::read(&args, &mount) {
            Ok(helper::Said::Mount(asked)) => Ok((asked.args, asked.fake)),
            Ok(helper::Said::Help) => {
                // Nobody is left to tell when that fails, here and below.
                let _ = writeln!(std::io::stdout(), "{}", helper::SYNOPSIS);
                return Err(Exit::Ok);
            }
            Err(why) => Err(why),
        },
        false => options::expanded(args, &mount).map(|args| (args, false)),
    };
    let read = read.and_then(|(args, fake)| Ok((config_file::included(args, &mount, judge)?, fake)));
    let (args, fake) = read.map_err(|why| {
        let program = if called { "mount.torrentfs" } else { "the command line" };
        let _ = writeln!(std::io::stderr(), "{}", Failure::new(Exit::Usage, program, why));
        Exit::Usage
    })?;
    match Cli::try_parse_from(args).map(Cli::wanted) {
        Ok(_) if fake => Err(Exit::Ok),
        Ok(command) => Ok(command),
        Err(message) => {
            let _ = message.print();
            Err(if message.use_stderr() { Exit::Usage } else { Exit::Ok })
        }
    }
}

/// What is wrong with some options of `torrentfs mount`, if anything, in a line.
fn judge(options: &[OsString]) -> Result<(), String> {
    let places = ["x", "/"].map(OsString::from);
    let line =
        ["torrentfs", "mount"].map(OsString::from).into_iter().chain(options.iter().cloned()).chain(places);
    Cli::try_parse_from(line).map(|_| ()).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// The script that completes our command line in a shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "torrentfs", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The description of `torrentfs mount`.
fn mount_command() -> clap::Command {
    Cli::command().find_subcommand("mount").cloned().unwrap_or_default()
}

const EXAMPLES: &str = "\
Examples:
  torrentfs mount film.torrent /mnt/film
      Mount a torrent. Ctrl-C, or \"umount /mnt/film\" from elsewhere, ends it.
  torrentfs mount 'magnet:?xt=urn:btih:...' other.torrent /mnt/all
      Several at once, by magnet link and by file, side by side in one folder.
  torrentfs mount --no-dht --peer 192.0.2.7:6881 <40 hex digits> /mnt/x
      By info-hash alone, from a peer that is known.
  torrentfs cat album.torrent 'disc 1/track 01.flac' | mpv -
      One file to standard output, without a mount.
  torrentfs mount --cache-size 20G film.torrent /mnt/film
      With a bound on what is kept of it.
  torrentfs mount --watch ~/torrents /mnt/all
      Whatever lies in a folder, as it comes and goes.
  torrentfs mount --daemon --log-file /var/log/film.log film.torrent /mnt/film
      In the background; this returns when it is ready.
  torrentfs inspect --json film.torrent
      What a torrent holds, without mounting it.
  torrentfs verify --data ~/Downloads film.torrent
      Use what another client has downloaded, in place.
  torrentfs status --watch
      What running mounts do, as it goes on.
  torrentfs add /mnt/all third.torrent
      One more torrent in a running mount; \"remove\" takes one out, \"unmount\" ends the mount.
  torrentfs prefetch /mnt/all/film/part1.mkv
      Fetch it whole, in the background.
  torrentfs limit /mnt/all --download 2M --upload none
      Change the limits of a running mount, of all torrents together or of one.
  torrentfs cache list
      What is kept, and how much room it takes.
  torrentfs demo
      See it work, without a network.";

const VALUES: &str = "\
Values:
  SOURCE    a magnet link, a .torrent file, an http(s) URL of one, or an info-hash (40 hex or 32 base32
            digits)
  SIZE      bytes: 512M, 4GiB (times 1024), 500MB (times 1000)
  RATE      bytes a second: 2M, 512KiB (times 1024), 500KB (times 1000)
  DURATION  500ms, 10s, 5m, 1h; 0 as told with the option";

fn mount_notes() -> String {
    format!(
        "{VALUES}\n\n\
         Reading is what fetches: nothing is downloaded but what is read, and a little ahead of it. Every byte\n\
         that is read was verified. --prefetch fetches more, in the background. A read whose piece doesn't come waits, and can be interrupted.\n\n\
         SIGINT, SIGTERM and SIGHUP unmount and exit; a second one forces the exit.\n\n{}",
        environment_and_codes()
    )
}

fn environment_and_codes() -> String {
    format!(
        "Environment:\n  TORRENTFS_LOG  what is logged, in place of -v and -q, as in info,torrentfs=debug\n  \
         NO_COLOR       no colours in log lines\n\nExit codes:\n{}",
        exit::table().trim_end()
    )
}

/// Mounts torrents as ordinary read-only files; reading is what fetches.
#[derive(Debug, Parser)]
#[command(name = "torrentfs", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", environment_and_codes()))]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Mount torrents as read-only files, until told to stop
    #[command(after_help = VALUES, after_long_help = mount_notes(), args_override_self = true)]
    Mount(Box<MountArgs>),
    /// Print one file of a torrent to standard output, without a mount
    #[command(after_help = VALUES, after_long_help = cat::notes())]
    Cat(Box<CatArgs>),
    /// Say what a torrent holds, without fetching or mounting it
    Inspect(InspectArgs),
    /// Check what is here of a torrent, or use what another client downloaded
    #[command(after_long_help = verify::notes())]
    Verify(VerifyArgs),
    /// Show what lies in the cache, and remove what isn't needed any more
    Cache(CacheArgs),
    /// Show what running mounts do
    Status(StatusArgs),
    /// Add torrents to a running mount
    #[command(after_help = VALUES)]
    Add(AddArgs),
    /// Take torrents out of a running mount
    Remove(RemoveArgs),
    /// End a running mount, in good order, and wait until it has
    Unmount(UnmountArgs),
    /// Fetch files or folders of a running mount whole, in the background
    Prefetch(PrefetchArgs),
    /// Show or change how fast a running mount may download and upload
    #[command(after_help = VALUES)]
    Limit(LimitArgs),
    /// Say what a running mount is at: locks, tasks, waiting readers and what they wait for
    Debug(DebugArgs),
    /// See it work without a network: make a sample torrent, seed it, mount it
    Demo(DemoArgs),
    /// Print a script that completes this program's command line in a shell
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
struct MountArgs {
    /// Magnet link, .torrent file or info-hash; may be given several times, or left out with --watch
    #[arg(required_unless_present = "watch", num_args = 1.., value_name = "SOURCE")]
    sources: Vec<OsString>,
    /// Empty folder to mount at
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Mount every .torrent and .magnet file in this folder, too, as they come and go
    #[arg(long, value_name = "DIR")]
    watch: Option<PathBuf>,
    /// What to fetch beyond what is read, once readers have what they want
    #[arg(long, value_name = "WHAT", default_value = "none")]
    prefetch: PrefetchArg,
    #[command(flatten)]
    client: ClientArgs,

    /// Go into the background, and return when the metadata of every SOURCE is there, or --metadata-timeout has
    /// passed; a start that fails is told by the exit code
    #[arg(long)]
    daemon: bool,
    /// Options as mount and /etc/fstab write them: any option listed here without its dashes, as in
    /// cache_size=20G,no_dht, and those of mount(8)
    #[arg(short, value_name = "OPTS")]
    options: Vec<OsString>,
    /// Read options from this file: TOML, with the options listed here as keys, as in cache-size = "20G"; those of the
    /// command line replace them
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[arg(long, hide = true)]
    fs_name: Option<String>,
    #[arg(long, hide = true)]
    mount_option: Vec<String>,
    #[arg(long, hide = true)]
    namespace: Option<PathBuf>,

    /// Let other users see the mount [default for root]
    #[arg(long, overrides_with = "no_allow_other", help_heading = "Files")]
    allow_other: bool,
    /// Keep other users out
    #[arg(long, overrides_with = "allow_other", help_heading = "Files")]
    no_allow_other: bool,
    /// Owner of the files shown, by number [default: who runs this]
    #[arg(long, value_name = "UID", help_heading = "Files")]
    uid: Option<u32>,
    /// Group of the files shown, by number [default: of who runs this]
    #[arg(long, value_name = "GID", help_heading = "Files")]
    gid: Option<u32>,
    /// Permissions to take away from the files and folders shown, as in 027
    #[arg(long, value_name = "OCTAL", value_parser = config::parse_umask, help_heading = "Files")]
    umask: Option<u32>,
    /// Fetch nothing for this user, a number or a name: its reads get what is here, and an error at once for the
    /// rest; may be given several times
    #[arg(long, value_name = "USER", value_parser = config::parse_user, help_heading = "Files")]
    offline_uid: Vec<UserRef>,

    #[command(flatten)]
    logging: LoggingArgs,
    /// Add log lines to this file, instead of writing them to stderr
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    log_file: Option<PathBuf>,
}

// The torrent itself knows nothing of clap, so this stands for its type on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrefetchArg {
    /// Nothing: what is read, and a little ahead of it, is all
    None,
    /// Each file that is read from, whole
    File,
    /// Everything
    All,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A .torrent file; of a magnet link, what the link itself holds
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Empty folder to mount at [default: a new temporary folder]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    logging: LoggingArgs,
}

impl Cli {
    fn wanted(self) -> Command {
        match self.command {
            Subcommands::Mount(args) => Command::Mount(Box::new(args.config())),
            Subcommands::Cat(args) => Command::Cat(Box::new(args.config())),
            Subcommands::Inspect(args) => Command::Inspect { source: args.source, json: args.json },
            Subcommands::Verify(args) => Command::Verify(Box::new(args.config())),
            Subcommands::Cache(args) => Command::Cache(args.config()),
            Subcommands::Status(args) => Command::Remote(args.into()),
            Subcommands::Add(args) => Command::Remote(args.into()),
            Subcommands::Remove(args) => Command::Remote(args.into()),
            Subcommands::Unmount(args) => Command::Remote(args.into()),
            Subcommands::Prefetch(args) => Command::Remote(args.into()),
            Subcommands::Limit(args) => Command::Remote(args.into()),
            Subcommands::Debug(args) => Command::Remote(args.into()),
            Subcommands::Demo(args) => Command::Demo {
                mountpoint: args.mountpoint,
                verbosity: args.logging.verbosity(),
                log_format: args.logging.format(),
            },
            Subcommands::Completions { shell } => Command::Completions(shell),
        }
    }
}

impl MountArgs {
    fn config(self) -> Config {
        Config {
            sources: self.sources,
            watch: self.watch,
            mountpoint: self.mountpoint,
            client: ClientConfig {
                prefetch: match self.prefetch {
                    PrefetchArg::None => Prefetch::None,
                    PrefetchArg::File => Prefetch::File,
                    PrefetchArg::All => Prefetch::All,
                },
                ..self.client.config(&self.logging)
            },
            allow_other: match (self.allow_other, self.no_allow_other) {
                (false, false) => None,
                (allow, _) => Some(allow),
            },
            uid: self.uid,
            gid: self.gid,
            umask: self.umask,
            offline: self.offline_uid,
            daemon: self.daemon,
            log_file: self.log_file,
            fs_name: self.fs_name,
            mount_options: self.mount_option,
            namespace: self.namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::time::Duration;

    use clap::CommandFactory;

    use super::*;
    use crate::config::{CacheAction, HostPort, InitialCheck, Listen};
    use crate::control::message::Change;
    use crate::storage::StorageKind;
    use crate::torrent::goal::{Goals, Ratio};

    fn read(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once("torrentfs").chain(line.split_whitespace())).map(Cli::wanted)
    }

    fn mount(line: &str) -> Config {
        match read(&format!("mount {line}")) {
            Ok(Command::Mount(config)) => *config,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn cat(line: &str) -> CatConfig {
        match read(&format!("cat {line}")) {
            Ok(Command::Cat(config)) => *config,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_settings() {
        let sources = vec!["a.torrent".into()];
        assert_eq!(mount("a.torrent /mnt/x"), Config::new(sources, "/mnt/x".into()));
        let client = ClientConfig { verbosity: -1, ..ClientConfig::default() };
        let want = CatConfig { source: "a.torrent".into(), path: None, offset: 0, length: None, client };
        assert_eq!(cat("a.torrent"), want);
    }

    #[test]
    fn every_option_reaches_its_setting() {
        let shared = "--cache-dir /c --listen 127.0.0.1:0 --interface eth0 --proxy socks5://u:p@h:9 --peer a:1 --peer [::1]:2 --tracker udp://t:3 --tracker http://t \
            --no-dht --no-lsd --no-pex --encryption require --no-utp --no-port-mapping --no-trackers --allow-private-hosts --dht-bootstrap b:4 --read-timeout 0 \
            --metadata-timeout 2s --max-peers 7 --max-connections 70 --upload-limit 1K --download-limit 2MB/s \
            --unlimited-local-peers --ip-filter /f --no-upload --seed-ratio 1.5 --seed-time 2h \
            --shutdown-timeout 3s --storage mmap --cache-size 64M --min-free-space 0 --initial-check full --trust-resume false -vv --log-format json";
        let args = &format!(
            "{shared} --prefetch file --watch /w --no-allow-other --uid 5 --gid 6 --umask 027 --offline-uid 34 --offline-uid backup --daemon --log-file /l \
            --fs-name f --mount-option noexec --namespace /n a.torrent magnet:?xt=urn:btih:x /mnt/x"
        );
        let host = |host: &str, port| HostPort { host: host.into(), port };
        let client = ClientConfig {
            cache_dir: Some("/c".into()),
            listen: Listen { addr: Some([127, 0, 0, 1].into()), port: Some(0) },
            interface: Some("eth0".into()),
            proxy: crate::net::proxy::Proxy::parse("socks5://u:p@h:9").ok(),
            peers: vec![host("a", 1), host("::1", 2)],
            trackers: vec!["udp://t:3".into(), "http://t".into()],
            use_trackers: false,
            allow_private_hosts: true,
            use_dht: false,
            use_pex: false,
            encryption: crate::peer::mse::Policy::Require,
            use_lsd: false,
            use_utp: false,
            use_port_mapping: false,
            dht_bootstrap: vec![host("b", 4)],
            read_timeout: None,
            metadata_timeout: Duration::from_secs(2),
            max_peers: 7,
            max_connections: 70,
            upload_limit: Some(1024),
            download_limit: Some(2_000_000),
            unlimited_local_peers: true,
            ip_filter: Some("/f".into()),
            upload: false,
            goals: Goals { ratio: Some(Ratio(1500)), time: Some(Duration::from_secs(7200)) },
            prefetch: Prefetch::None,
            shutdown_timeout: Duration::from_secs(3),
            storage: StorageKind::Mmap,
            cache_size: Some(64 << 20),
            min_free: Some(0),
            initial_check: InitialCheck::Full,
            trust_resume: false,
            verbosity: 2,
            log_format: LogFormat::Json,
        };
        let want = Config {
            sources: vec!["a.torrent".into(), "magnet:?xt=urn:btih:x".into()],
            watch: Some("/w".into()),
            mountpoint: "/mnt/x".into(),
            client: ClientConfig { prefetch: Prefetch::File, ..client.clone() },
            allow_other: Some(false),
            uid: Some(5),
            gid: Some(6),
            umask: Some(0o27),
            offline: vec![UserRef::Id(34), UserRef::Name("backup".into())],
            daemon: true,
            log_file: Some("/l".into()),
            fs_name: Some("f".into()),
            mount_options: vec!["noexec".into()],
            namespace: Some("/n".into()),
        };
        assert_eq!(mount(args), want);
        // Options may stand after the mount point, too.
        let (options, places) = args.split_once("a.torrent").unwrap();
        assert_eq!(mount(&format!("a.torrent {places} {options}")), want);
        // The same ones, with the same meaning; but it is quieter by a step.
        let want = CatConfig {
            source: "a.torrent".into(),
            path: Some("b/c".into()),
            offset: 1 << 20,
            length: Some(1000),
            client: ClientConfig { verbosity: 1, ..client },
        };
        assert_eq!(cat(&format!("{shared} --offset 1M --length 1KB a.torrent b/c")), want);
    }

    #[test]
    fn with_a_watched_folder_no_source_is_needed() {
        let none: [OsString; 0] = [];
        for line in ["--watch /w /m", "/m --watch /w", "--watch=/w -v /m", "-v /m --watch=/w"] {
            let config = mount(line);
            assert_eq!((config.watch, config.mountpoint), (Some("/w".into()), "/m".into()), "{line}");
            assert_eq!(config.sources, none, "{line}");
        }
        let config = mount("--watch /w a.torrent b.torrent /m");
        assert_eq!(
            (config.sources, config.mountpoint),
            (vec!["a.torrent".into(), "b.torrent".into()], "/m".into())
        );
        for line in ["mount /m", "mount --watch /w", "mount", "mount -v /m"] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn other_users() {
        let rows = [
            ("", true, true),
            ("", false, false),
            ("--allow-other", false, true),
            ("--no-allow-other", true, false),
            ("--no-allow-other --allow-other", false, true),
            ("--allow-other --no-allow-other", true, false),
        ];
        for (flag, root, want) in rows {
            assert_eq!(mount(&format!("{flag} a /m")).allow_other(root), want, "{flag}");
        }
    }

    #[test]
    fn how_much_is_logged() {
        for (flags, want) in [
            ("", 0),
            ("-v", 1),
            ("-vvv", 3),
            ("-q", -1),
            ("-qq", -2),
            ("-v -q", 0),
            ("--verbose --quiet -v", 1),
        ] {
            assert_eq!(mount(&format!("{flags} a /m")).client.verbosity, want, "{flags}");
        }
    }

    #[test]
    fn other_commands() {
        assert_eq!(
            read("inspect --json x.torrent").unwrap(),
            Command::Inspect { source: "x.torrent".into(), json: true }
        );
        let plain = VerifyConfig {
            source: "x.torrent".into(),
            data: None,
            read_only: false,
            cache_dir: None,
            json: false,
            verbosity: 0,
            log_format: LogFormat::Text,
        };
        assert_eq!(read("verify x.torrent").unwrap(), Command::Verify(Box::new(plain.clone())));
        let full = VerifyConfig {
            data: Some("/d".into()),
            read_only: true,
            cache_dir: Some("/c".into()),
            json: true,
            verbosity: -1,
            log_format: LogFormat::Json,
            ..plain
        };
        assert_eq!(
            read("verify x.torrent --data /d --read-only --cache-dir /c --json -q --log-format json")
                .unwrap(),
            Command::Verify(Box::new(full))
        );
        let cache = |cache_dir: Option<&str>, action| {
            Command::Cache(CacheConfig { cache_dir: cache_dir.map(Into::into), action })
        };
        let rows = [
            ("list", None, CacheAction::List { json: false }),
            ("list --json --cache-dir /c", Some("/c"), CacheAction::List { json: true }),
            (
                "prune --to 1G --older-than 30d --dry-run",
                None,
                CacheAction::Prune {
                    to: Some(1 << 30),
                    older_than: Some(Duration::from_secs(30 * 24 * 3600)),
                    dry_run: true,
                },
            ),
            ("prune", None, CacheAction::Prune { to: None, older_than: None, dry_run: false }),
            (
                "remove --cache-dir /c a b",
                Some("/c"),
                CacheAction::Remove { names: vec!["a".into(), "b".into()], dry_run: false },
            ),
        ];
        for (line, dir, action) in rows {
            assert_eq!(read(&format!("cache {line}")).unwrap(), cache(dir, action), "{line}");
        }
        let at = || Some(std::path::PathBuf::from("/m"));
        let rows = [
            ("status", Remote::Status { mountpoint: None, json: false, watch: false }),
            ("status /m --json --watch", Remote::Status { mountpoint: at(), json: true, watch: true }),
            ("add /m a b", Remote::Add { mountpoint: "/m".into(), sources: vec!["a".into(), "b".into()] }),
            (
                "remove /m --delete-data a",
                Remote::Remove { mountpoint: "/m".into(), torrents: vec!["a".into()], delete_data: true },
            ),
            ("unmount /m", Remote::Unmount { mountpoint: "/m".into() }),
            ("debug /m", Remote::Debug { mountpoint: "/m".into() }),
            (
                "limit /m a --download 2M --upload none",
                Remote::Limit {
                    mountpoint: "/m".into(),
                    torrent: Some("a".into()),
                    download: Change::To(Some(2 << 20)),
                    upload: Change::To(None),
                },
            ),
            (
                "limit /m",
                Remote::Limit {
                    mountpoint: "/m".into(),
                    torrent: None,
                    download: Change::Keep,
                    upload: Change::Keep,
                },
            ),
            ("prefetch /m/a --off b", Remote::Prefetch { paths: vec!["/m/a".into(), "b".into()], off: true }),
        ];
        for (line, want) in rows {
            assert_eq!(read(line).unwrap(), Command::Remote(want), "{line}");
        }
        assert_eq!(
            read("demo -q").unwrap(),
            Command::Demo { mountpoint: None, verbosity: -1, log_format: LogFormat::Text }
        );
        assert_eq!(read("completions fish").unwrap(), Command::Completions(Shell::Fish));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell);
            assert!(script.contains("cache-size") && script.contains("verify"), "{shell}");
        }
        assert_eq!(
            read("demo /m").unwrap(),
            Command::Demo { mountpoint: Some("/m".into()), verbosity: 0, log_format: LogFormat::Text }
        );
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_reason() {
        let rows = [
            ("", "Usage"),
            ("mount", "SOURCE"),
            ("mount a.torrent", "MOUNTPOINT"),
            ("mount --listen 6881 a /m", "for a port alone write :6881"),
            ("mount --interface eth0:1 a /m", "as in eth0"),
            ("mount --peer localhost a /m", "the port is missing"),
            ("mount --tracker ftp://x a /m", "http, https or udp"),
            ("mount --read-timeout 10 a /m", "a unit is missing"),
            ("mount --shutdown-timeout 0 a /m", "no time at all"),
            ("mount --max-peers 0 a /m", "1..=65535"),
            ("mount --upload-limit 0 a /m", "no limit"),
            ("mount --umask 9 a /m", "octal"),
            ("mount --offline-uid 4294967295 a /m", "a user's number"),
            ("mount --prefetch some a /m", "[possible values: none, file, all]"),
            ("cat --prefetch all a", "unexpected argument"),
            ("mount --offline-uid a:b a /m", "a number or a name"),
            ("cat --offline-uid 1 a", "unexpected argument"),
            ("mount --trust-resume maybe a /m", "[possible values: true, false]"),
            ("mount --initial-check some a /m", "[possible values: none, full]"),
            ("mount --storage tape a /m", "[possible values: file, mmap, memory]"),
            ("mount --cache-size 1M a /m", "less than 16M"),
            ("cat --cache-size 0 a", "leave the option out for no bound"),
            ("mount --min-free-space some a /m", "a size is a number"),
            ("verify", "SOURCE"),
            ("verify a --read-only", "--data"),
            ("cache", "list"),
            ("cache list x", "unexpected argument"),
            ("cache prune --to much", "a size is a number"),
            ("cache prune --older-than 30", "a unit is missing"),
            ("cache remove", "NAME|INFOHASH"),
            ("mount --nonsense a /m", "unexpected argument"),
            ("cat", "SOURCE"),
            ("cat a b c", "unexpected argument"),
            ("cat --offset -1 a", "unexpected argument"),
            ("cat --length soon a", "a size is a number"),
            ("cat --allow-other a", "unexpected argument"),
            ("status a b", "unexpected argument"),
            ("add", "MOUNTPOINT"),
            ("add /m", "SOURCE"),
            ("remove /m", "NAME|INFOHASH"),
            ("unmount", "MOUNTPOINT"),
            ("prefetch --off", "PATH"),
            ("limit --upload 1M", "MOUNTPOINT"),
            ("limit /m --upload 0", "no limit"),
            ("inspect", "SOURCE"),
            ("inspect a b", "unexpected argument"),
            ("completions tcsh", "[possible values: bash"),
        ];
        for (line, reason) in rows {
            let message = read(line).expect_err(line).to_string();
            assert!(message.contains(reason), "{line}: {message}");
        }
        let args = |line: &'static str| line.split(' ').map(OsString::from);
        assert_eq!(parse(args("torrentfs mount")), Err(Exit::Usage));
        assert_eq!(parse(args("torrentfs --version")), Err(Exit::Ok));
    }

    /// A flag is listed once it works, and every flag that is listed is explained.
    #[test]
    fn help_lists_what_works() {
        let help = read("mount --help").expect_err("help").to_string();
        for listed in [
            "--cache-dir",
            "--peer <HOST:PORT>",
            "--listen <ADDR[:PORT]>",
            "--no-port-mapping",
            "TORRENTFS_LOG",
            "130",
        ] {
            assert!(help.contains(listed), "{listed} in {help}");
        }
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            for arg in command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
                assert!(arg.get_help().is_some(), "{} of {}", arg.get_id(), command.get_name());
            }
        }
    }
}
