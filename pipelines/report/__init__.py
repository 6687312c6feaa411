"""The report of one run: a single HTML file that needs nothing else.

run.py             reads a run directory; says what is missing or damaged instead of failing on it
words.py           every name and sentence that depends on a method, a stage, a phase or a protocol
scores.py          the main table as data: rows, differences to the start, the headline sentence
terminal.py        the main table for a terminal
style.py           colors, the empty panel, its text as SVG
figures.py         charts as inline SVG
panels.py          which charts a run has, with the sentence above each
ranking_panels.py  those of evaluation/*.npz
reliability.py     what probabilities say beside how often they were right
ranklists.py       queries with their best answers as images
heatmaps.py        where the trained encoder looks
run_warnings.py    what the run warned of, each once
templates.py       the one environment of jinja
page.py            puts everything into run.html (style.css) and writes report.html
comparison.py      the page of several runs, means over their seeds
trials_page.py     the page of a data set's trials
"""
