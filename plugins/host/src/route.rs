use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};

use crate::{ChainName, HostError};

/// Most routes at the same time. Settings hold as many, so that what is shown of them can be written back.
pub const MAX_ROUTES: usize = 256;

/// Which files a route is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matcher {
    /// Everything below a directory of the live tree, `/logs`; `/` is everything.
    Under(String),
    /// A glob: on the file's name, or with a `/` in it on the path from the root.
    Match(String),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which files.
    pub matcher: Matcher,
    /// The chain they go through.
    pub chain: String,
    /// Whether that chain may leave them unencrypted; only for [`Matcher::Under`].
    pub allow_unencrypted: bool,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.matcher {
            Matcher::Under(dir) => write!(f, "under {dir}")?,
            Matcher::Match(glob) => write!(f, "match {glob}")?,
        }
        write!(f, " -> {}", self.chain)
    }
}

enum Compiled {
    Under(Vec<u8>),
    Name(GlobMatcher),
    Path(GlobMatcher),
}

/// The rules in order; the first that matches wins, `default` where none does.
pub struct RouteTable {
    routes: Vec<(Route, Compiled, ChainName)>,
    default: ChainName,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self { routes: Vec::new(), default: Arc::from("default") }
    }
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.routes()).finish()
    }
}

impl RouteTable {
    /// Compiles `routes`.
    ///
    /// # Errors
    /// [`HostError::BadRoute`] for a pattern that is no glob, a directory that is no absolute path, an exemption from encryption that
    /// is not for a whole directory or is for everything, and the first route beyond [`MAX_ROUTES`].
    pub fn new(routes: Vec<Route>) -> Result<Self, HostError> {
        if let Some(beyond) = routes.get(MAX_ROUTES) {
            let reason = format!("there may be {MAX_ROUTES} routes at most");
            return Err(HostError::BadRoute { route: beyond.to_string(), reason });
        }
        let compile = |route: Route| {
            let compiled =
                compile(&route).map_err(|reason| HostError::BadRoute { route: route.to_string(), reason })?;
            let chain = ChainName::from(route.chain.as_str());
            Ok((route, compiled, chain))
        };
        Ok(Self { routes: routes.into_iter().map(compile).collect::<Result<_, _>>()?, ..Self::default() })
    }

    /// The rules in order.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(|(route, _, _)| route)
    }

    /// The chain for a file's path from the live root, with or without a slash before it.
    pub fn route(&self, path: &[u8]) -> ChainName {
        self.explain(path).1.clone()
    }

    /// The rule that decides for `path`, and the chain.
    pub fn explain(&self, path: &[u8]) -> (Option<&Route>, &ChainName) {
        if self.routes.is_empty() {
            return (None, &self.default);
        }
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let (dir, name) = path.split_at(path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1));
        let name = settled(name);
        let full = [dir, name].concat();
        let as_path = |bytes| Path::new(OsStr::from_bytes(bytes));
        let matches = |compiled: &Compiled| match compiled {
            Compiled::Under(under) => full.starts_with(under),
            Compiled::Name(glob) => glob.is_match(as_path(name)),
            Compiled::Path(glob) => glob.is_match(as_path(&full)),
        };
        match self.routes.iter().find(|(_, compiled, _)| matches(compiled)) {
            Some((route, _, chain)) => (Some(route), chain),
            None => (None, &self.default),
        }
    }
}

/// The name that a file will have: rsync writes `.name.Xxxxxx` and renames it to `name`.
pub fn settled(name: &[u8]) -> &[u8] {
    const RANDOM: usize = 6;
    let Some(inner) = name.strip_prefix(b".") else { return name };
    let Some(dot) = inner.len().checked_sub(RANDOM + 1) else { return name };
    let (settled, suffix) = inner.split_at(dot);
    let is_random = suffix[0] == b'.' && suffix[1..].iter().all(u8::is_ascii_alphanumeric);
    if is_random && !settled.is_empty() { settled } else { name }
}

fn compile(route: &Route) -> Result<Compiled, String> {
    match &route.matcher {
        Matcher::Under(dir) => {
            let inner = dir.strip_prefix('/').ok_or("a directory is given from the live root, as /logs")?;
            if inner.is_empty() && route.allow_unencrypted {
                return Err("not everything can be exempted from encryption: name a directory, as /public".into());
            }
            if inner.is_empty() {
                return Ok(Compiled::Under(Vec::new()));
            }
            let inner = inner.strip_suffix('/').unwrap_or(inner);
            if inner.split('/').any(|s| s.is_empty() || s == "." || s == "..") {
                return Err("a directory has no empty segments, . or ..".into());
            }
            Ok(Compiled::Under(format!("{inner}/").into_bytes()))
        }
        Matcher::Match(_) if route.allow_unencrypted => {
            Err("only a whole directory can be exempted from encryption: use under".into())
        }
        Matcher::Match(pattern) => {
            let inner = pattern.strip_prefix('/').unwrap_or(pattern);
            let glob = GlobBuilder::new(inner).literal_separator(true).build().map_err(|e| e.kind().to_string())?;
            let matcher = glob.compile_matcher();
            Ok(if pattern.contains('/') { Compiled::Path(matcher) } else { Compiled::Name(matcher) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RouteTable {
        let route = |matcher, chain: &str| Route { matcher, chain: chain.into(), allow_unencrypted: false };
        RouteTable::new(vec![
            route(Matcher::Under("/logs".into()), "archive"),
            route(Matcher::Match("*.{jpg,mp4}".into()), "media"),
            route(Matcher::Match("/vm/*/disk?".into()), "disks"),
        ])
        .expect("good routes")
    }

    #[test]
    fn the_first_match_wins() {
        for (path, chain) in [
            ("logs/a.jpg", "archive"),
            ("/logs/deep/er", "archive"),
            ("logs", "default"),
            ("logsx/a", "default"),
            ("a.jpg", "media"),
            ("deep/in/a.mp4", "media"),
            ("a.jpg.txt", "default"),
            ("vm/one/disk1", "disks"),
            ("vm/one/two/disk1", "default"),
            ("x/vm/one/disk1", "default"),
            ("photos/.a.jpg.Ab3dE9", "media"),
            ("photos/.a.jpg.Ab3dE", "default"),
            ("photos/.jpg", "media"),
            ("", "default"),
        ] {
            assert_eq!(&*table().route(path.as_bytes()), chain, "{path}");
        }
        assert_eq!(&*table().route(b"\xff\xfe.jpg"), "media", "names are bytes");
    }

    #[test]
    fn the_root_stands_for_everything_and_a_last_slash_for_nothing() {
        let under =
            |dir: &str| Route { matcher: Matcher::Under(dir.into()), chain: "c".into(), allow_unencrypted: false };
        let table = |dir: &str| RouteTable::new(vec![under(dir)]).expect("a good route");
        assert_eq!((&*table("/").route(b"a"), &*table("/").route(b"/deep/b")), ("c", "c"));
        assert_eq!((&*table("/a/").route(b"a/b"), &*table("/a/").route(b"b")), ("c", "default"));
        assert!(RouteTable::new(vec![under("/a"); MAX_ROUTES]).is_ok());
        let error = RouteTable::new(vec![under("/a"); MAX_ROUTES + 1]).expect_err("one too many").to_string();
        assert!(error.contains("256 routes at most"), "{error}");
    }

    #[test]
    fn temporary_names_settle() {
        for (name, want) in [
            (".name.Xy12zA", "name"),
            (".a.tar.gz.abcdef", "a.tar.gz"),
            ("..abcdef", "..abcdef"),
            (".abcdef", ".abcdef"),
            (".x.abc-ef", ".x.abc-ef"),
            ("name.abcdef", "name.abcdef"),
            (".bashrc", ".bashrc"),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(settled(name.as_bytes()), want.as_bytes(), "{name}");
        }
    }

    #[test]
    fn bad_routes_say_why() {
        for (matcher, exempt, reason) in [
            (Matcher::Under("logs".into()), false, "from the live root"),
            (Matcher::Under("/a/../b".into()), false, ".."),
            (Matcher::Under("//".into()), false, "no empty segments"),
            (Matcher::Under("/a//".into()), false, "no empty segments"),
            (Matcher::Under("/".into()), true, "name a directory"),
            (Matcher::Match("*.{a".into()), false, "unclosed"),
            (Matcher::Match("*.a".into()), true, "whole directory"),
        ] {
            let route = Route { matcher, chain: "c".into(), allow_unencrypted: exempt };
            let error = RouteTable::new(vec![route]).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
