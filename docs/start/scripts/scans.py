"""Scan volumes: find lesions, and give whole scans back. First: lazytiles demo --data scans"""

from pathlib import Path

import keras
import numpy as np

import lazytiles as lt

keras.utils.set_random_seed(0)
names = sorted(folder.name for folder in Path("scans/images").iterdir())
volumes, masks = ({n: lt.stack_regions(f"scans/{kind}/{n}") for n in names} for kind in ("images", "masks"))
boxes = lt.make_grid(volumes, (8, 32, 32), stride=(6, 24, 24), edge="pad")
patches = lt.open_volumes(boxes, volumes, masks=masks, pad="reflect")
train, test = patches.split(0.67, by="region_id", seed=0)

model = keras.Sequential([keras.Input((8, 32, 32, 1)), keras.layers.Conv3D(8, 3, padding="same", activation="swish")])
model.add(keras.layers.Conv3D(1, 3, padding="same", activation="sigmoid"))
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
scale = patches.statistics()
model.fit(lt.KerasAdapter(train, batch_size=8, shuffle=True, normalize=scale), epochs=6, verbose=2)
for scan in lt.predict(model, test, normalize=scale, blend="gaussian", out="scans/maps", overwrite=True):
    found, true = np.asarray(scan["y_pred"]) > 0.5, scan["y_true"] > 0
    print(scan["id"], "Dice", 2 * (found & true).sum() / (found.sum() + true.sum()))
