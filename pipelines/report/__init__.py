"""The report of one run: a single HTML file that needs nothing else.

run.py        reads a run directory; says what is missing or damaged instead of failing on it
words.py      every name and sentence that depends on a method, a stage, a phase or a protocol
scores.py     the main table as data: rows, differences to the start, the headline sentence
terminal.py   the main table for a terminal
figures.py    charts as inline SVG
ranklists.py  queries with their best answers as images
heatmaps.py   where the trained encoder looks
learned_words.py   what learned prompts are nearest to in CLIP's vocabulary
contact.py    the contact sheet of a search
sweep_page.py   the page of a sweep
panels.py     which charts a run has, with the sentence above each
page.py       puts everything into template.html (style.css) and writes report.html
"""
