//! The statements of docs/SEMANTICS.md.

use super::Subject;

/// Where it stands, from the workspace's root.
pub const PATH: &str = "docs/SEMANTICS.md";

/// A statement.
pub struct Statement {
    pub id: String,
    pub text: String,
    of: Vec<Subject>,
}

impl Statement {
    /// Whether it is checked of this subject.
    pub fn is_of(&self, subject: Subject) -> bool {
        self.of.contains(&subject)
    }
}

/// All statements in their order. Panics when a row of a table is none.
pub fn statements() -> Vec<Statement> {
    let mut found: Vec<Statement> = Vec::new();
    for line in include_str!("../../../docs/SEMANTICS.md").lines().filter(|line| line.starts_with('|')) {
        let mut cells = line.trim_matches('|').splitn(3, '|').map(str::trim);
        let (Some(id), Some(of), Some(text)) = (cells.next(), cells.next(), cells.next()) else {
            panic!("no statement: {line}");
        };
        if id == "id" || id.starts_with("---") {
            continue;
        }
        let of = match of {
            "all" => vec![Subject::Operations, Subject::MockMount, Subject::Torrent],
            "mount" => vec![Subject::MockMount, Subject::Torrent],
            "torrent" => vec![Subject::Torrent],
            other => panic!("{id} is checked of {other:?}, which is nothing"),
        };
        assert_eq!(id, format!("S{}", found.len() + 1), "ids count up: {line}");
        assert!(text.ends_with('.'), "{id} is no sentence");
        found.push(Statement { id: id.into(), text: text.into(), of });
    }
    found
}
