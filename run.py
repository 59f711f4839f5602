"""Train one configuration, or a sweep of them: `python run.py --help`."""

from scm.commands.train import launch

if __name__ == "__main__":
    launch()
