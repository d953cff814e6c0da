"""What notebook 10 shows, as one page; the other executed notebooks as pages beside it.

    python -m uniego_utils.report.page executed/10_report.ipynb outputs/mocap/10_report/index.html

The notebook calls `begin_page` where its page begins, then `show_table` and `show_figure`; nbconvert makes
the page of the executed notebook, without its code.
"""

import argparse
import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from IPython.display import HTML, Image, display
from nbformat import NotebookNode

from uniego_utils.pipeline.ship import execution_of
from uniego_utils.report.paper import NOT_RUN
from uniego_utils.runs import write_text

TITLE = "page_title"  # in the metadata of the output with which a page begins
# No network and no scripts, whatever an output holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.3rem;margin-top:2.5rem}h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
body{overflow-wrap:anywhere}img{max-width:100%;height:auto;margin-top:1rem}
.output_subarea,.rendered_html{overflow-x:auto}pre{font:inherit;white-space:pre-wrap}
table{border-collapse:collapse;font-size:.9rem;width:max-content;overflow-wrap:normal}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;max-width:16rem}
th{max-width:9rem}td:first-child,th:first-child{text-align:left;max-width:min(16rem,32vw)}
.missing{border-left:4px solid #c33;padding-left:.6rem}
a{color:#05a}summary{cursor:pointer}
"""
# What the text and the outputs of a notebook may contain; everything else is shown as text.
TAGS = """
a b blockquote br code dd details div dl dt em h1 h2 h3 h4 hr i li ol p pre span strong sub summary sup
table tbody td tfoot th thead tr ul
""".split()


def begin_page(title: str) -> None:
    """Display `title`; the page begins here and is called so."""
    display(HTML(f"<h1>{html.escape(title)}</h1>"), metadata={TITLE: title})


def show_table(table: pd.DataFrame, title: str = "", folded: bool = False) -> None:
    """Display a table without its index, or how to make it where it has no rows.

    Args:
        title: a heading above the table.
        folded: show the title alone, which opens the table.
    """
    title = html.escape(title)
    with pd.option_context("display.max_colwidth", None):
        cells = table.to_html(index=False, border=0, na_rep="")
    shown = cells if len(table) else f"<p class='missing'>{NOT_RUN}</p>"
    heading = f"<h3>{title}</h3>" if title else ""
    folding = f"<details><summary>{title}</summary>{shown}</details>"
    display(HTML(folding if folded else heading + shown))


def show_figure(notebook: str, files: Sequence[Path], title: str) -> None:
    """Display a figure of another notebook, or how to make it.

    The runner leaves the picture out of the notebook that it ships: the other notebook ships it.

    Args:
        notebook: which one drew it, e.g. "07_cka".
        files: where its PNG may be; the first that exists is shown.
        title: a heading above the figure.
    """
    link = f"Notebook <a href='{notebook}.ipynb'>{notebook}</a>"
    path = next((path for path in files if path.is_file()), None)
    note = f"<p>{link}</p>" if path else f"<p class='missing'>{link}, {NOT_RUN}</p>"
    display(HTML(f"<h3>{html.escape(title)}</h3>{note}"))
    if path:
        display(Image(path, alt=title), metadata={"figure_of": notebook})


def write_page(executed: Path, page: Path) -> None:
    """One self-contained HTML page from an executed notebook, and pages of the notebooks beside it.

    Pictures are embedded and nothing is fetched, so formulas stay as they were typed. Text and outputs may
    hold the markup of TAGS; other markup is shown as text. Links to notebooks lead to their pages in
    `notebooks/`, beside `page`.

    Raises:
        ValueError: the notebook has not been executed up to `begin_page`, or a cell of it failed.
    """
    notebook = nbformat.read(executed, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if any(output.output_type == "error" for output in outputs):
        raise ValueError(f"a cell of {executed} failed; execute the notebook again")
    begins = [number for number, cell in enumerate(notebook.cells) if _page_title(cell)]
    if not begins:
        raise ValueError(f"{executed} shows no page; execute a notebook that calls begin_page")
    notebook.cells = notebook.cells[begins[0] :]
    pages = render_notebooks(executed.parent, page.parent / "notebooks")
    links = {name: os.path.relpath(path, page.parent) for name, path in pages.items()}
    write_text(page, _document(notebook, _page_title(notebook.cells[0]), links))


def render_notebooks(executed: Path, folder: Path) -> dict[str, Path]:
    """The notebooks that the pipeline has run as HTML pages in `folder`; of several seeds the first.

    Formulas are drawn where there is a network; everything else is in the pages.

    Returns:
        Notebook name -> its page, in the order of numbers; empty where the pipeline has run nothing.
    """
    from nbconvert import HTMLExporter  # imported late: 1 s that tables need not wait for

    names = sorted({path.name for path in executed.rglob("[0-9][0-9]_*.ipynb") if path.stem.count(".") == 0})
    pages = {}
    for name in names:
        path = execution_of(name, executed)
        if path is not None:
            page = folder / f"{path.stem}.html"
            write_text(page, HTMLExporter(template_name="lab").from_filename(str(path))[0])
            pages[path.stem] = page
    return pages


def _page_title(cell: NotebookNode) -> str:
    """The title of the page that begins with this cell's outputs, else ""."""
    notes = [output.get("metadata", {}) for output in cell.get("outputs", [])]
    return next((note[TITLE] for note in notes if TITLE in note), "")


def _document(notebook: NotebookNode, title: str, links: Mapping[str, str]) -> str:
    """The page's HTML; links: notebook -> its page's address."""
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors.sanitize import SanitizeHTML

    for cell in notebook.cells:
        cell.metadata["alt"] = title
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):  # pandas puts a style into every table
                output.data["text/html"] = re.sub(
                    r"<style.*?</style>", "", output.data["text/html"], flags=re.DOTALL
                )
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_output_prompt=True,
        exclude_input_prompt=True,
        exclude_anchor_links=True,
    )
    allowed = {"a": ["href"], "*": ["class"]}
    exporter.register_preprocessor(SanitizeHTML(tags=TAGS, attributes=allowed), enabled=True)
    body = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")

    contents = []
    for number, heading in enumerate(body.select("h2, h3")):
        heading["id"] = f"s{number}"
        contents.append(f"<li><a href='#s{number}'>{html.escape(heading.text)}</a></li>")
    for picture in body.select("img"):
        picture["alt"] = picture.find_previous(["h1", "h2", "h3"]).text
    for link in body.select("a[href$='.ipynb']"):
        if link["href"].removesuffix(".ipynb") in links:
            link["href"] = links[link["href"].removesuffix(".ipynb")]
        else:
            link.unwrap()
    notebooks = " · ".join(
        f"<a href='{html.escape(to)}'>{html.escape(name)}</a>" for name, to in links.items()
    )
    body.h1.insert_after(
        BeautifulSoup(
            f"<details><summary>Contents</summary><ul>{''.join(contents)}</ul></details>"
            f"<p>The notebooks as they ran: {notebooks}</p>",
            "html.parser",
        )
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page that the command line names; errors end in a line, without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m uniego_utils.report.page", description=__doc__.splitlines()[0]
    )
    parser.add_argument("executed", type=Path, help="notebook 10, executed; those beside it are linked")
    parser.add_argument("page", type=Path, help="the HTML file to write")
    chosen = parser.parse_args(arguments)
    try:
        write_page(chosen.executed, chosen.page)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
