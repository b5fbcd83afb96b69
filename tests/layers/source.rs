//! The source tree as the compiler sees it: files, their modules, and what each file really uses.
//!
//! Files are found by following `mod` declarations from the crate roots and are parsed with `syn`.
//! Code that only tests compile is left out of the uses. A path is resolved by its first segment:
//! `crate`, `self`, `super`, a child module, a name that the file has imported, or else another
//! crate. Macro arguments are read as tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A source file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path below the repository's folder.
    pub(crate) path: String,
    /// Module path within the crate; a program's begins with the program's name.
    pub(crate) module: Vec<String>,
    /// Whole text.
    pub(crate) text: String,
    /// Lines before the first item that only tests compile.
    pub(crate) lines_before_tests: usize,
    /// Whether only tests compile this file.
    pub(crate) is_test: bool,
    /// Paths that the code uses: resolved within this crate (they begin with `crate`), else as
    /// written.
    pub(crate) uses: BTreeSet<Vec<String>>,
    /// Functions with their lengths in lines.
    pub(crate) functions: Vec<(String, usize)>,
    /// Whether there is `unsafe` in it, in tests too.
    pub(crate) has_unsafe: bool,
    /// Whether it has `#![forbid(unsafe_code)]`.
    pub(crate) forbids_unsafe: bool,
}

impl Source {
    /// Name of the top-level module or of the program.
    pub(crate) fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }
}

/// All files that are compiled into the library and the programs.
pub(crate) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots =
        vec![(root.join("src/lib.rs"), vec![]), (root.join("src/main.rs"), vec!["main".to_owned()])];
    for entry in fs::read_dir(root.join("src/bin")).expect("src/bin exists") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        roots.push((path, vec![name]));
    }
    let mut found = Vec::new();
    for (path, module) in roots {
        // A crate root looks for its modules in its own folder, as `mod.rs` does.
        let folder = path.parent().expect("a folder").to_owned();
        read(root, &path, &folder, module, false, &mut found);
    }
    assert!(found.len() > 100, "the walk found only {} files", found.len());
    found
}

fn read(
    root: &Path,
    path: &Path,
    folder: &Path,
    module: Vec<String>,
    is_test: bool,
    found: &mut Vec<Source>,
) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = Reader::new(&module, &file);
    reader.visit_file(&file);
    let unsafe_sites = &mut UnsafeSites { found: false };
    unsafe_sites.visit_file(&file);
    let first_test = file.items.iter().find(|item| is_test_only(attributes(item)));
    let lines = text.lines().count();
    let lines_before_tests = first_test.map_or(lines, |item| item.span().start().line.saturating_sub(1));
    found.push(Source {
        path: path.strip_prefix(root).expect("below the repository").to_string_lossy().into_owned(),
        module: module.clone(),
        lines_before_tests,
        is_test,
        uses: reader.uses,
        functions: reader.functions,
        has_unsafe: unsafe_sites.found,
        forbids_unsafe: file.attrs.iter().any(|attr| {
            attr.path().is_ident("forbid") && tokens_of(attr).iter().any(|token| token == "unsafe_code")
        }),
        text,
    });
    for item in &file.items {
        let syn::Item::Mod(declared) = item else { continue };
        if declared.content.is_some() {
            continue;
        }
        let name = declared.ident.to_string();
        let file = file_of(declared, folder, path);
        let own_folder = if file.ends_with("mod.rs") {
            file.parent().expect("a folder").to_owned()
        } else {
            folder.join(&name)
        };
        let module = [module.as_slice(), &[name]].concat();
        read(root, &file, &own_folder, module, is_test || is_test_only(&declared.attrs), found);
    }
}

/// Path of the file of a module that is declared without a body.
fn file_of(declared: &syn::ItemMod, folder: &Path, declared_in: &Path) -> PathBuf {
    let attribute = declared.attrs.iter().find(|attr| attr.path().is_ident("path"));
    if let Some(syn::Meta::NameValue(pair)) = attribute.map(|attr| &attr.meta)
        && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) = &pair.value
    {
        return declared_in.parent().expect("a folder").join(path.value());
    }
    let flat = folder.join(format!("{}.rs", declared.ident));
    if flat.exists() { flat } else { folder.join(declared.ident.to_string()).join("mod.rs") }
}

/// Collects uses and functions outside tests.
struct Reader {
    module: Vec<String>,
    children: BTreeSet<String>,
    /// Imported names with their resolved paths.
    imported: BTreeMap<String, Vec<String>>,
    uses: BTreeSet<Vec<String>>,
    functions: Vec<(String, usize)>,
}

impl Reader {
    fn new(module: &[String], file: &syn::File) -> Self {
        let children = file.items.iter().filter_map(|item| {
            let syn::Item::Mod(declared) = item else { return None };
            Some(declared.ident.to_string())
        });
        let mut reader = Self {
            module: module.to_vec(),
            children: children.collect(),
            imported: BTreeMap::new(),
            uses: BTreeSet::new(),
            functions: Vec::new(),
        };
        // Imports first: they give later paths their meaning.
        for item in &file.items {
            if let syn::Item::Use(import) = item
                && !is_test_only(&import.attrs)
            {
                reader.import(&import.tree, &mut Vec::new());
            }
        }
        reader
    }

    fn import(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.import(&path.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, prefix)),
            syn::UseTree::Glob(_) => self.record(prefix),
            syn::UseTree::Name(name) if name.ident == "self" => {
                let local = prefix.last().cloned().unwrap_or_default();
                self.bind(local, prefix);
            }
            syn::UseTree::Name(name) => {
                let path = [prefix.as_slice(), &[name.ident.to_string()]].concat();
                self.bind(name.ident.to_string(), &path);
            }
            syn::UseTree::Rename(rename) => {
                let path = [prefix.as_slice(), &[rename.ident.to_string()]].concat();
                self.bind(rename.rename.to_string(), &path);
            }
        }
    }

    fn bind(&mut self, local: String, path: &[String]) {
        let resolved = self.resolve(path);
        self.imported.insert(local, resolved.clone());
        self.uses.insert(resolved);
    }

    fn record(&mut self, path: &[String]) {
        let resolved = self.resolve(path);
        self.uses.insert(resolved);
    }

    fn resolve(&self, path: &[String]) -> Vec<String> {
        let krate = || vec!["crate".to_owned()];
        let Some(first) = path.first() else { return Vec::new() };
        let (mut base, mut rest) = match first.as_str() {
            "crate" | "hopsack" => (krate(), &path[1..]),
            "self" | "super" => ([krate(), self.module.clone()].concat(), path),
            // A single segment names something of this file; it is no use of another.
            name if self.imported.contains_key(name) && path.len() > 1 => {
                (self.imported[name].clone(), &path[1..])
            }
            name if self.children.contains(name) => ([krate(), self.module.clone()].concat(), path),
            _ => (Vec::new(), path),
        };
        while let Some(first) = rest.first() {
            match first.as_str() {
                "self" => {}
                "super" => _ = base.pop(),
                _ => break,
            }
            rest = &rest[1..];
        }
        base.extend_from_slice(rest);
        base
    }

    /// Reads paths in the arguments of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
                TokenTree::Ident(ident) if colons == 2 => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Ident(ident) => {
                    self.end(&mut path);
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end(&mut path);
                    colons = 0;
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        if path.len() > 1 {
            self.record(path);
        }
        path.clear();
    }

    fn function(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = body.span().end().line - signature.span().start().line + 1;
        self.functions.push((signature.ident.to_string(), lines));
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test_only(attributes(item)) {
            return;
        }
        if let syn::Item::Use(import) = item {
            return self.import(&import.tree, &mut Vec::new());
        }
        let inline = if let syn::Item::Mod(inline) = item { Some(inline.ident.to_string()) } else { None };
        let is_inline = inline.is_some();
        self.module.extend(inline);
        visit::visit_item(self, item);
        if is_inline {
            self.module.pop();
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            self.function(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.record(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in path)` uses nothing.
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

/// Finds `unsafe`, in tests too.
struct UnsafeSites {
    found: bool,
}

impl<'ast> Visit<'ast> for UnsafeSites {
    fn visit_expr_unsafe(&mut self, _: &'ast syn::ExprUnsafe) {
        self.found = true;
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.found |= signature.unsafety.is_some();
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.found |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }

    fn visit_item_foreign_mod(&mut self, _: &'ast syn::ItemForeignMod) {
        self.found = true;
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.found |= has_ident(call.tokens.clone(), "unsafe");
    }
}

fn has_ident(tokens: TokenStream, name: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => has_ident(group.stream(), name),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

fn tokens_of(attribute: &syn::Attribute) -> Vec<String> {
    match &attribute.meta {
        syn::Meta::List(list) => list.tokens.clone().into_iter().map(|token| token.to_string()).collect(),
        syn::Meta::Path(_) | syn::Meta::NameValue(_) => Vec::new(),
    }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attr| {
        attr.path().is_ident("test")
            || attr.path().is_ident("cfg") && tokens_of(attr).iter().any(|token| token == "test")
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::ForeignMod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::TraitAlias(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Union(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Verbatim(_) | _ => &[],
    }
}
