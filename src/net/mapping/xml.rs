//! As much of XML as a router's UPnP needs: tags by their local names, and the text between them. Pure; hostile input
//! welcome.
//!
//! Routers write XML by hand, and so it is read: names without their prefix, tags that needn't match, no declarations, no
//! entities but the five that everybody has and characters by number. Nothing recurses and nothing is expanded, so what
//! comes out is never longer than what went in.

use std::borrow::Cow;

/// Elements of one document that are looked at: more than any description has.
const MAX_LEAVES: usize = 1024;

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token<'a> {
    /// `<name …>`
    Open(&'a str),
    /// `</name>`, and also the end of `<name/>`.
    Close(&'a str),
    /// What stands between tags, unescaped.
    Text(Cow<'a, str>),
}

/// Goes through a document.
pub struct Tokens<'a> {
    rest: &'a str,
    /// `<name/>` is both.
    closing: Option<&'a str>,
}

impl<'a> Tokens<'a> {
    /// From the beginning.
    pub fn new(text: &'a str) -> Self {
        Self { rest: text, closing: None }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if let Some(name) = self.closing.take() {
            return Some(Token::Close(name));
        }
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let Some(markup) = self.rest.strip_prefix('<') else {
                let end = self.rest.find('<').unwrap_or(self.rest.len());
                let (text, rest) = self.rest.split_at(end);
                self.rest = rest;
                return Some(Token::Text(unescape(text)));
            };
            if let Some(data) = markup.strip_prefix("![CDATA[") {
                let (data, rest) = data.split_once("]]>").unwrap_or((data, ""));
                self.rest = rest;
                return Some(Token::Text(Cow::Borrowed(data)));
            }
            if let Some(comment) = markup.strip_prefix("!--") {
                self.rest = comment.split_once("-->").map_or("", |(_, rest)| rest);
                continue;
            }
            let end = tag_end(markup);
            let (tag, rest) = (markup.get(..end).unwrap_or(markup), markup.get(end + 1..).unwrap_or(""));
            self.rest = rest;
            if tag.starts_with(['?', '!']) {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                return Some(Token::Close(local(name)));
            }
            let name = local(tag);
            if tag.ends_with('/') {
                self.closing = Some(name);
            }
            return Some(Token::Open(name));
        }
    }
}

/// Where a tag ends: at its first `>` that isn't in quotes, or else with the text.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (at, byte) in tag.bytes().enumerate() {
        match (byte, quote) {
            (b'>', None) => return at,
            (b'"' | b'\'', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            _ => {}
        }
    }
    // A quote that is never closed is no quote.
    tag.find('>').unwrap_or(tag.len())
}

/// The name of a tag, without what stands before its colon.
fn local(tag: &str) -> &str {
    let name =
        tag.trim_start().split(|c: char| c.is_ascii_whitespace() || c == '/').next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default()
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        // The longest is `&#x10ffff;`.
        let end = from.bytes().take(12).position(|byte| byte == b';');
        let entity = end.and_then(|end| Some((from.get(1..end)?, from.get(end + 1..)?)));
        match entity.and_then(|(name, after)| Some((character(name)?, after))) {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = from.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn character(entity: &str) -> Option<char> {
    match entity {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = entity.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

/// Makes text stand between tags.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c => out.push(c),
        }
    }
    out
}

/// The elements that hold text alone, in their order: name, and text without the space around it. Those in which a
/// `group` begins or ends are told as such, with [`Leaf::Begin`] and [`Leaf::End`].
pub fn leaves<'a>(text: &'a str, group: &str) -> Vec<Leaf<'a>> {
    let mut found = Vec::new();
    let mut inside: Option<(&str, String)> = None;
    for token in Tokens::new(text) {
        if found.len() >= MAX_LEAVES {
            break;
        }
        match token {
            Token::Open(name) if name == group => {
                inside = None;
                found.push(Leaf::Begin);
            }
            Token::Open(name) => inside = Some((name, String::new())),
            Token::Text(more) => {
                if let Some((_, text)) = &mut inside {
                    text.push_str(&more);
                }
            }
            Token::Close(name) if name == group => {
                inside = None;
                found.push(Leaf::End);
            }
            Token::Close(name) => {
                if let Some((open, text)) = inside.take()
                    && open == name
                {
                    found.push(Leaf::Text(name, text.trim().to_owned()));
                }
            }
        }
    }
    found
}

/// See [`leaves`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf<'a> {
    /// The group begins.
    Begin,
    /// The group ends.
    End,
    /// An element with its text.
    Text(&'a str, String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_are_taken_apart() {
        let text = "<?xml version='1.0'?><!DOCTYPE a><s:a x=\"y>z\"><!-- <no> --><b>1 &lt;&#50;&#x33;&nope; & </b>\
                    <c/><d /><![CDATA[<e>&amp;]]></s:a>tail<f";
        let tokens: Vec<Token> = Tokens::new(text).collect();
        let expected = [
            Token::Open("a"),
            Token::Open("b"),
            Token::Text("1 <23&nope; & ".into()),
            Token::Close("b"),
            Token::Open("c"),
            Token::Close("c"),
            Token::Open("d"),
            Token::Close("d"),
            Token::Text("<e>&amp;".into()),
            Token::Close("a"),
            Token::Text("tail".into()),
            Token::Open("f"),
        ];
        assert_eq!(tokens, expected);
    }

    #[test]
    fn broken_documents_end() {
        for (text, tokens) in [
            ("", 0),
            ("<", 1),
            ("<>", 1),
            ("</", 1),
            ("<a", 1),
            ("<a b='>", 1),
            ("<!--", 0),
            ("<![CDATA[x", 1),
            ("<a b='></a>", 2),
            ("&", 1),
            ("&#x110000;&#xd800;&#;", 1),
        ] {
            assert_eq!(Tokens::new(text).count(), tokens, "{text}");
        }
    }

    #[test]
    fn leaves_are_grouped() {
        let text = "<r><x>1</x><g><y> 2 </y><z><y>3</y></z></g><g/><x>4<y>5</y></x></r>";
        let leaf = |name, text: &str| Leaf::Text(name, text.to_owned());
        let expected = [
            leaf("x", "1"),
            Leaf::Begin,
            leaf("y", "2"),
            leaf("y", "3"),
            Leaf::End,
            Leaf::Begin,
            Leaf::End,
            leaf("y", "5"),
        ];
        assert_eq!(leaves(text, "g"), expected);
        assert_eq!(leaves(&"<a></a>".repeat(MAX_LEAVES + 5), "g").len(), MAX_LEAVES);
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read(text in "\\PC{0,60}") {
            let document = format!("<a>{}</a>", escape(&text));
            let found = leaves(&document, "");
            prop_assert_eq!(found, [Leaf::Text("a", text.trim().to_owned())]);
        }

        #[test]
        fn no_document_is_too_strange(text in "(<|>|/|!--|\\[CDATA\\[|]]>|\"|'|&|#x?|;|[a-z:]{1,4}| ){0,80}") {
            let mut length = 0;
            for token in Tokens::new(&text) {
                length += match token {
                    Token::Text(text) => text.len(),
                    Token::Open(name) | Token::Close(name) => name.len(),
                };
            }
            // `<a/>` names its name twice.
            prop_assert!(length <= 2 * text.len());
        }
    }
}
