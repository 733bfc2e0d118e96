//! A page for a browser: headings and tables, nothing that runs and nothing that is fetched.
//!
//! Every text is escaped; the policy in its head forbids what is not the page's own style.

/// A section: its heading, its columns, its rows.
type Section<'a> = (&'a str, Vec<&'a str>, Vec<Vec<String>>);

const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
<meta name=\"viewport\" content=\"width=device-width\">\n";
const STYLE: &str = "<style>\nbody { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }\n\
table { border-collapse: collapse; width: 100% }\nth, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }\n\
th { font-size: 12px; color: #555; white-space: nowrap }\n</style>\n";

/// The page.
pub fn html(title: &str, about: &[String], sections: &[Section<'_>]) -> String {
    let mut page = format!(
        "{HEAD}<title>{title}</title>\n{STYLE}</head>\n<body>\n<h1>{title}</h1>\n",
        title = escaped(title)
    );
    for line in about {
        page += &format!("<p>{}</p>\n", escaped(line));
    }
    for (heading, columns, rows) in sections {
        page += &format!(
            "<h2>{}</h2>\n<table>\n<thead>{}</thead>\n<tbody>\n",
            escaped(heading),
            row("th", columns)
        );
        page.extend(rows.iter().map(|cells| row("td", cells)));
        page += "</tbody>\n</table>\n";
    }
    page + "</body>\n</html>\n"
}

fn row(tag: &str, cells: &[impl AsRef<str>]) -> String {
    let cell = |cell: &dyn AsRef<str>| format!("<{tag}>{}</{tag}>", escaped(cell.as_ref()));
    let cells: String = cells.iter().map(|text| cell(text)).collect();
    format!("<tr>{cells}</tr>\n")
}

/// Text in HTML or XML.
pub fn escaped(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
