import sys

from pointseg.commands.main import main

sys.exit(main())
