SCALE = "tiny"  # the bundled miniature: offline, no GPU. The only switch: "colab" and "paper" are in notebook 10
REPOSITORY = "https://github.com/manu-tutorial/manu"
import importlib.util, os, subprocess, sys
from pathlib import Path
here, installed = Path.cwd(), importlib.util.find_spec("manu_utils")
packages = installed.submodule_search_locations if installed else []
places = [here, *here.parents, here / "manu", *(Path(package).parent for package in packages)]
home = next((p for p in places if (p / "manu_utils").is_dir() and (p / "data").is_dir()), None)
if home is None and not (installed and "MANU_DATA" in os.environ):  # Colab, or a notebook opened alone
    subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, "manu"], check=True)
    subprocess.run([sys.executable, "manu/notebooks/install_missing.py"], check=True)
sys.path.insert(0, str(home or here / "manu"))  # the package, wherever this notebook was opened
