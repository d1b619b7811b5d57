# make tutorial   run the notebooks on the bundled miniature, results in build/
# make test       unit tests, notebook hygiene and every notebook against its stored outputs
# make test-portable  the same as on an older CPU (AVX2, no bfloat16), with one thread and with two
# make lab        open JupyterLab in notebooks/
# make student    the notebooks without solutions into build/student, with them in the cells into build/teacher (nbgrader's marks)
# make slides     slides of the notebooks into build/slides (reveal.js, no network needed)
# make site       the executed series as a static book into build/site
# make notebooks  re-execute the notebooks and store their outputs
# make mini-data  rebuild data/mllmu_mini (SEED=0)
# make mini-model rebuild data/tiny_llava (SEED=0); with DENSE=1 train the twin without the sparsity penalty into build/dense
# make retrained  train the retrained reference of each forget ratio (an hour each on a slow core): that of 10 % is bundled and
#                 made again in data/tiny_llava/retrained, the others go into build/retrained
# make sweeps     the long runs behind notebooks 06-08, data/results (about 2½ hours on two cores; resumable)
# make audit      settings of every method by one rule, then every attack on every method: the long runs behind notebook 06,
#                 section 11, and notebook 09 (a day and a half of one core; resumable)
# make bench      speed and memory ratios, of two processes too; build/bench.csv (best on an idle machine)
# make mutants    do the tests see it when one line of a core module is wrong? (by hand, not part of make test)
# make repository rewrite the public address in notebooks, README and pyproject (URL=https://github.com/you/fork), and the
#                 release that the notebooks install: the version of pyproject
# make clean      remove build/ and caches; `make distclean` also removes .venv/

SEED ?= 0
DENSE ?=
URL ?=
export URL

READY := .venv/.installed
PY := .venv/bin/python
# The bundled miniature needs no network; progress bars would end up in stored outputs. Every notebook is a process of its
# own: they read the package's bytecode, and do not compile it again, whatever the shell says. Large tensors in huge pages
# (Linux, where the system lends them) are up to a tenth faster, with the same bits.
RUN := env PYTHONDONTWRITEBYTECODE= THP_MEM_ALLOC_ENABLE=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 \
       TRANSFORMERS_VERBOSITY=error
NBVAL := -m pytest -q --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=600
# Two tests or notebooks at a time, one thread each: on two cores that beats one with two threads.
# A file stays in one process, so that what its tests share is made once; conftest.py says which come first. Tests and
# notebooks are one queue: no core waits for the other but at the very end.
BOTH_CORES := $(PY) $(NBVAL) -n 2 --dist loadfile --no-loadscope-reorder
# What torch has for matrix products on a CPU without AVX-512, AMX and bfloat16.
PORTABLE := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
# Training carries the last bits of a sum, which depend on the number of threads, through hundreds of steps.
TRAINING ?= $(foreach number,06 02 12,$(wildcard notebooks/$(number)_*.ipynb))
# Threads that wait let others work: at two processes on two cores, spinning takes four fifths of the time.
TWO_THREADS := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE

RATIOS ?= 5 10 15

.PHONY: tutorial test test-portable test-training lab student slides site notebooks mini-data mini-model \
        retrained sweeps audit bench mutants repository clean distclean

tutorial: $(READY)
	$(RUN) $(PY) notebooks/run_all.py

test: $(READY)
	$(RUN) OMP_NUM_THREADS=1 $(BOTH_CORES) tests notebooks

# Unit tests and training with either number of threads; all notebooks with one, as in `make test` (TRAINING=notebooks: with two).
test-portable: $(READY)
	$(RUN) $(PORTABLE) OMP_NUM_THREADS=1 $(BOTH_CORES) tests notebooks
	$(RUN) $(PORTABLE) $(TWO_THREADS) $(BOTH_CORES) tests $(TRAINING)

test-training: $(READY)
	$(RUN) $(PORTABLE) $(TWO_THREADS) $(BOTH_CORES) $(TRAINING)

# First of all kernels named python3 the one of this environment, whatever else JUPYTER_PATH offers.
lab: $(READY)
	JUPYTER_PATH="$(CURDIR)/.venv/share/jupyter:$$JUPYTER_PATH" $(PY) -m jupyter lab --notebook-dir=notebooks

student: $(READY)
	$(PY) notebooks/student.py

slides: $(READY)
	$(PY) notebooks/slides.py

site: $(READY)
	$(PY) notebooks/book.py

notebooks: $(READY)
	$(PY) notebooks/repository.py
	$(RUN) $(PY) notebooks/run_all.py --write-back
	$(PY) notebooks/readme_picture.py

mini-data: $(READY)
	$(PY) -m manu_utils.miniature data --seed $(SEED)
	$(PY) -m manu_utils.miniature text

mini-model: $(READY)
	$(PY) -m manu_utils.miniature model --seed $(SEED) $(if $(DENSE),--dense)

retrained: $(READY)
	for ratio in $(RATIOS); do $(PY) -m manu_utils.miniature retrained --forget-ratio $$ratio || exit 1; done

audit: $(READY)
	$(PY) experiments/rivals.py
	$(PY) experiments/audit.py

sweeps: $(READY)
	$(PY) experiments/compare.py --answers
	$(PY) experiments/ablate.py
	$(PY) experiments/ablate.py --name planted

bench: $(READY)
	@failed=0; for script in speed/bench_*.py; do $(RUN) $(PY) $$script || failed=1; done; exit $$failed

mutants: $(READY)
	$(RUN) $(PY) speed/mutants.py

repository: $(READY)
	$(PY) notebooks/repository.py $(if $(URL),"$$URL")

# The first Python of at least 3.11 that can make an environment.
$(READY): pyproject.toml requirements.txt
	@for python in $(PYTHON) python3 python3.12 python3.13 python3.11 python3.14 python; do \
	  $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  $(PY) -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv || exit 1; break; \
	done; \
	[ -x $(PY) ] || { echo "No Python >= 3.11 with venv was found; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing the tested versions into .venv (once; torch is large)"
	$(PY) -m pip install --quiet --no-compile --disable-pip-version-check -c requirements.txt -e ".[dev]"
	@$(PY) -m compileall -qq -j 0 .venv/lib || true # as pip does, but on all cores; what is no Python 3 is left as it is
	@touch $@

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis manu_utils.egg-info

distclean: clean
	rm -rf .venv
