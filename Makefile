# Everything that a fresh clone needs: each target makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TYPES ?= build/types
MSRC ?= ../shared/data/msrc
VOC6 ?= ../shared/data/voc6
SEEDS ?= 0,1,2,3,4
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

# Tables 2 to 4 with one protocol on two small sets of photographs, some hours each on two cores; what was broken off goes on by
# the same command. SCORE="--score-list LIST --score-data TREE" scores the networks on others. msrc takes as many steps. The
# second command of voc6 trains all layers, two seeds of four rows.
REPRODUCE := tools/reproduce.py --dataset voc6 --train-list train --jobs $(JOBS) $(SCORE)
TABLES := --table 2 3 4 --seeds $(SEEDS)
END_TO_END := --table 2 3 --rows baseline cp rt cp-random --seeds 0,1 --set train.features= train.freeze=[] predict.features= \
	predict.retrain_agreed=false predict.retrain_filter_labels=true
reproduce-voc6: $(STAMP)
	$(BIN)/python $(REPRODUCE) $(TABLES) --data $(VOC6) --classes $(VOC6)/classes.txt --out runs/voc6
	$(BIN)/python $(REPRODUCE) $(END_TO_END) --data $(VOC6) --classes $(VOC6)/classes.txt --out runs/voc6 \
		--report runs/voc6/end-to-end$(if $(SCORE),-elsewhere)

reproduce-msrc: $(STAMP)
	$(BIN)/python $(REPRODUCE) $(TABLES) --data $(MSRC) --classes $(MSRC)/classes.txt --out runs/msrc --set train.epochs=24

clean:
	rm -rf $(VENV) runs build *.egg-info

$(STAMP): setup.py
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 9) <= v <= (3, 12) else "Python 3.9 to 3.12 is needed, this is %d.%d; name another: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,dev]'
	touch $(STAMP)
