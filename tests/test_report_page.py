"""The page of an executed notebook: it stands alone, shows all text as text, and fits a phone."""

import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from uniego_utils.pipeline.runner import run_notebook
from uniego_utils.pipeline.ship import SHIPPED_METADATA, ship
from uniego_utils.report.page import main, render_notebooks, write_page

NASTY = "<script>alert('a & b')</script><img src=x onerror='alert(1)'>"
LONG = "a cell of far more than fifty characters, which pandas would cut off by itself"
IMPORTS = """
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown, display

from uniego_utils.report.page import begin_page, show_figure, show_table

print("before the page")
"""
TABLES = f"""
show_table(pd.DataFrame({{title: [title], "long": ["{LONG}"], "nothing": [float("nan")]}}), title)
show_table(pd.DataFrame({{"folded": [1, 2]}}), "Every row", folded=True)
show_table(pd.DataFrame(), "Nobody ran this")
print("progress", file=sys.stderr)
"""
OTHERS = """
display(Markdown(title), HTML(title), pd.DataFrame({"index": [title]}))
print(title)
"""
FIGURES = """
figure, ax = plt.subplots(figsize=(20, 1))
figure.savefig("drawn.png")
plt.show()
show_figure("07_cka", [Path("absent.png"), Path("drawn.png")], title)
show_figure("08_gradient_conflict", [Path("absent.png")], "Nobody drew this")
"""


class Page(HTMLParser):
    """What a browser would fetch or run, where links lead, and the text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.shown, self.titles = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.shown += data
        if self.tags and self.tags[-1] == "title":
            self.titles.append(data)

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A small notebook, executed as the pipeline does."""
    folder = tmp_path_factory.mktemp("page")
    cells = [
        new_markdown_cell("# 10 · A question\n\nhow to run it"),
        new_code_cell('title: str = ""  # of the dataset', metadata={"tags": ["parameters"]}),
        new_code_cell(IMPORTS),
        new_code_cell('begin_page(f"UNIEGO on {title}")'),
        new_markdown_cell(
            "## The results\n\nUNIEGO > baseline, as in [07](07_cka.ipynb), [12](12_ablation.ipynb)"
        ),
        *(new_code_cell(source) for source in (TABLES, OTHERS, FIGURES)),
    ]
    (folder / "notebooks").mkdir()
    notebook = new_notebook(cells=cells, metadata=SHIPPED_METADATA)
    nbformat.write(notebook, folder / "notebooks" / "10_report.ipynb")
    out = folder / "executed" / "10_report.ipynb"
    run_notebook(folder / "notebooks" / "10_report.ipynb", out, {"title": NASTY}, timeout=120)
    nbformat.write(new_notebook(), out.with_name("07_cka.ipynb"))
    return out


@pytest.fixture(scope="module")
def text(executed, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "10_report" / "index.html"
    main([str(executed), str(path)])
    assert sorted(file.name for file in (path.parent / "notebooks").iterdir()) == [
        "07_cka.html",
        "10_report.html",
    ]
    return path.read_text(encoding="utf-8")


def test_a_page_fetches_nothing_and_runs_nothing(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("style") == 1 and "url(" not in text and "@import" not in text
    assert all(value.startswith("data:image/png;base64,") for value in page.values("src", "srcset", "data"))
    assert all(value.startswith(("#", "notebooks/")) for value in page.values("href"))
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.values("content")


def test_a_page_shows_markup_in_a_title_as_text(text):
    page = Page(text)
    assert "".join(page.titles) == f"UNIEGO on {NASTY}"
    # Title, heading; a table's heading, column, cell; Markdown, HTML, print; a figure's; contents, twice.
    assert page.shown.count(NASTY) == 11
    assert page.values("alt") == ["Nobody ran this", NASTY]


def test_a_page_fits_a_phone(text):
    assert "width=device-width" in text and "max-width:100%" in text and "overflow-x:auto" in text
    assert len(re.findall("<table", text)) == len(re.findall("output_html[^>]*>[^§]{0,400}?<table", text))


def test_a_page_shows_what_the_notebook_showed_without_its_code(text):
    page = Page(text)
    for shown in ("The results", "UNIEGO > baseline", LONG, "Every row"):
        assert shown in page.shown
    for hidden in ("before the page", "how to run it", "import", "progress", "nan", "show_table"):
        assert hidden not in page.shown
    assert page.tags.count("details") == 2 and page.tags.count("img") == 2


def test_a_page_says_how_to_make_what_is_missing(text):
    sections = re.findall(r"<h3[^>]*>Nobody[^<]*</h3>\s*<p[^>]*missing[^>]*>(.*?)</p>", text)
    assert sections == ["not run: make study", "Notebook 08_gradient_conflict, not run: make study"]


def test_links_lead_to_the_notebooks_that_ran(text):
    links = [value for value in Page(text).values("href") if not value.startswith("#")]
    every = ["notebooks/07_cka.html", "notebooks/10_report.html"]
    assert links == [*every, "notebooks/07_cka.html", "notebooks/07_cka.html"]
    headings = [value for value in Page(text).values("id") if re.fullmatch(r"s\d+", value)]
    contents = [value[1:] for value in Page(text).values("href") if value.startswith("#")]
    assert headings == contents and len(headings) == len(set(headings)) > 3


def test_a_shipped_notebook_leaves_figures_to_the_notebook_that_drew_them(executed, tmp_path):
    source = executed.parents[1] / "notebooks" / "10_report.ipynb"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    ship(executed.parent, tmp_path)
    pictures = [
        [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for cell in nbformat.read(tmp_path / source.name, as_version=4).cells
    ]
    assert [len(found) for found in pictures] == [0] * 7 + [1]


def test_a_notebook_without_a_page_is_refused(executed, tmp_path):
    source = executed.parents[1] / "notebooks" / "10_report.ipynb"
    with pytest.raises(
        ValueError, match="10_report.ipynb shows no page; execute a notebook that calls begin_page"
    ):
        write_page(source, tmp_path / "index.html")
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells[-1].outputs = [new_output("error", ename="E", evalue="x", traceback=[])]
    nbformat.write(notebook, tmp_path / "10_report.ipynb")
    with pytest.raises(SystemExit, match="a cell of .*10_report.ipynb failed; execute the notebook again"):
        main([str(tmp_path / "10_report.ipynb"), str(tmp_path / "index.html")])
    assert not (tmp_path / "index.html").exists()


def test_of_several_seeds_the_first_becomes_a_page(tmp_path):
    executed = tmp_path / "notebooks"
    for place, text in {
        "00_data": "once",
        "seed0/04_spd": "of seed 0",
        "seed1/04_spd": "of seed 1",
        "seed1/05_retrieval.failed": "broken",
    }.items():
        cell = new_code_cell("1", outputs=[new_output("stream", text=f"{text}\n")])
        (executed / place).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=[cell]), executed / f"{place}.ipynb")
    pages = render_notebooks(executed, tmp_path / "10_report" / "notebooks")
    assert list(pages) == ["00_data", "04_spd"]
    assert "of seed 0" in pages["04_spd"].read_text() and "of seed 1" not in pages["04_spd"].read_text()
    assert render_notebooks(tmp_path / "nothing", tmp_path) == {}
