# Everything that a fresh clone needs: each target makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TYPES ?= build/types
MSRC ?= ../shared/data/msrc
VOC6 ?= ../shared/data/voc6
VOC6_SEEDS ?= 0,1,2,3,4
SEEDS ?= 0,1,2,3,4,5
SEED_TABLE_4 ?= 3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs reproduce-msrc reproduce-voc6 clean

demo: $(STAMP)
	$(BIN)/python tools/demo.py --out runs/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP) types
	$(BIN)/ruff check .
	$(BIN)/mypy

# The package cian as it is installed, by links, for the type checker sees no editable installation.
types:
	rm -rf $(TYPES) && mkdir -p $(TYPES)/cian/tools
	ln -s $(CURDIR)/tools/cian/* $(CURDIR)/symbols $(CURDIR)/data $(TYPES)/cian
	ln -s $(CURDIR)/tools/*.py $(CURDIR)/tools/engine $(TYPES)/cian/tools

# Guide, reference, a page a tool: open build/site/index.html. Every warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,dev,docs]'
	rm -rf build/site
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site
	echo '<meta http-equiv="refresh" content="0; url=docs/index.html">' > build/site/index.html

# Tables 2 to 4 on the small real data set (over an hour on two cores); what was broken off goes on by the same command.
MSRC_RUN := tools/reproduce.py --dataset msrc --data $(MSRC) --classes $(MSRC)/classes.txt --train-list train --out runs/msrc --jobs $(JOBS)
reproduce-msrc: $(STAMP)
	$(BIN)/python $(MSRC_RUN) --table 2 3 --seeds $(SEEDS) --report runs/msrc/tables-2-3
	$(BIN)/python $(MSRC_RUN) --table 4 --seeds $(SEED_TABLE_4) --report runs/msrc/table-4

# The same tables on photographs of six of VOC's classes. SCORE="--score-list LIST --score-data TREE" scores its networks on others.
reproduce-voc6: $(STAMP)
	$(BIN)/python tools/reproduce.py --dataset voc6 --data $(VOC6) --classes $(VOC6)/classes.txt --train-list train --out runs/voc6 \
		--jobs $(JOBS) --table 2 3 4 --seeds $(VOC6_SEEDS) $(SCORE)

clean:
	rm -rf $(VENV) runs build *.egg-info

$(STAMP): setup.py
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 9) <= v <= (3, 12) else "Python 3.9 to 3.12 is needed, this is %d.%d; name another: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,dev]'
	touch $(STAMP)
