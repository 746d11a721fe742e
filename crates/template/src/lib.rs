//! Root file systems and the templates made from them.
