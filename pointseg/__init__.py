"""Lumbar vertebrae segmented from point labels, as in a thesis (Jan Alexander, Ghent University, 2021).

The modules in an order to read them in, though `procedure`, which is all of it, is a good place to begin:

    volume      a scan as arrays on the canonical axes, and the grid it was stored on
    preprocess  an isotropic grid, grey values, contrast: what the network sees
    points      labels of single voxels and slices, drawn from a mask as an expert would set them, and their time
    estimate    what those tell of all voxels: class sizes, class weights, a prediction's score
    slices      from volumes to network inputs and back
    network     VGG16 made fully convolutional (FCN8)
    losses      the loss terms: functions of tensors, and of all that a training step offers
    profiles    the numbers: a laptop's and a GPU's; when the learning rate falls
    train       the training loop and its optimiser
    levels      which vertebra is which: L1 to L5 in their order, a level a body
    predict     a trained model, or three, one an axis, and what they say of a scan
    fusion      what three models agree on becomes a pseudo mask
    metrics     Dice_wi, the mean of the classes' Dice weighted by their inverse size
    procedure   all of it, top to bottom: `procedure.run`
    kernels     every Numba loop that the others, and the folders, call
    compiled    how those are compiled

None of these imports a folder.  The folders, each of which may import those below it and all of the above:

    commands    the command line; segmenting many scans
    lessons     what the notebooks and the course share
    runs        what long runs need: checkpoints, prepared scans in files, saved models, several processes
    report      scores of cases in their own geometry, the table, figures
    datasets    folders of cases, their split by patient, synthetic scans, importers of public datasets
    scans       files to volumes, masks to files
"""

__version__ = "0.1.0"
