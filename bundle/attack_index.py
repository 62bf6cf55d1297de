"""index.csv of a folder of attacked images: who writes one (training, review) and who reads it (robustness) meet here.

`network` is the head that was attacked or answered, `attack` the family's name, `path` the image's in the folder,
`source` what it was made of or came as, `label` the label of that, or the answer where nobody knows.
"""

INDEX = "index.csv"
COLUMNS = ("network", "attack", "path", "source", "label")
