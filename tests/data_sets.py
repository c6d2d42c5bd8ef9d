"""Small public data sets as they are downloaded, with files that are empty where names decide."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def nifti(path, array, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def brats(root):
    case = "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001"
    touch(root, *(f"{case}_{w}.nii.gz" for w in ("flair", "t1", "t1ce", "t2", "seg")))
    touch(root, "BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz")
    touch(root, "HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_t1.nii.gz")
    for visit in ("000", "001"):
        case = f"BraTS-GLI-00005-{visit}/BraTS-GLI-00005-{visit}"
        touch(root, *(f"{case}-{w}.nii.gz" for w in ("t1n", "t1c", "t2w", "t2f", "seg")))
    text(
        root / "MICCAI_BraTS2020_TrainingData/survival_info.csv",
        "Brats20ID,Age,Survival_days,Extent_of_Resection",
        "BraTS20_Training_001,60.463,289,GTR",
    )


def atlas(root):
    at = "Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    touch(root, f"{at}_T1w.nii.gz", f"{at}_label-L_desc-T1lesion_mask.nii.gz")
    at = "Testing/R017/sub-r017s010/ses-1/anat/sub-r017s010_ses-1_space-MNI152NLin2009aSym"
    touch(root, f"{at}_T1w.nii.gz")


def wmh(root):
    for case in ("training/Utrecht/0", "training/Amsterdam/GE3T/100"):
        for part in ("orig", "pre"):
            touch(root, *(f"{case}/{part}/{w}.nii.gz" for w in ("FLAIR", "T1", "3DT1")))
        touch(root, f"{case}/orig/3DT1_mask.nii.gz", f"{case}/wmh.nii.gz")


def mslub(root):
    for word in ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt", "brainmask"):
        touch(root, f"patient01/patient01_{word}.nii.gz", f"patient02/{word}.nii.gz")


def msseg2008(root):
    for case in ("CHB_train_Part1/CHB_train_Case01", "UNC_train_Part1/UNC_train_Case02"):
        for word in ("FLAIR", "T1", "T2", "lesion"):
            touch(root, *(f"{case}/{case[16:]}_{word}.{e}" for e in ("nhdr", "raw")))
    at = "UNC_train_lesion_byCHB/UNC_train_Case02/UNC_train_Case02_lesion_byCHB"
    touch(root, f"{at}.nhdr", f"{at}.raw")
    touch(root, "CHB_test1_Part1/CHB_test1_Case01/CHB_test1_Case01_T1.nhdr")


def msseg2015(root):
    for time in ("01", "02"):
        for word in ("flair", "mprage", "pd", "t2"):
            at = f"training/training01/preprocessed/training01_{time}_{word}_pp.nii"
            touch(root, at, f"training/training01/orig/training01_{time}_{word}.nii.gz")
        for rater in (1, 2):
            touch(root, f"training/training01/masks/training01_{time}_mask{rater}.nii")
    touch(root, "testdata_website/test01/preprocessed/test01_01_flair_pp.nii")


def msseg2016(root):
    at = "Training/Center_01/Patient_01"
    for word in ("FLAIR", "T1", "T2", "DP", "GADO"):
        touch(root, f"{at}/Preprocessed_Data/{word}_preprocessed.nii.gz")
    touch(root, f"{at}/Raw_Data/3DFLAIR.nii.gz", f"{at}/Masks/Brain_Mask.nii.gz")
    raters = (f"{at}/Masks/ManualSegmentation_{n}.nii.gz" for n in (1, 2, 4))
    touch(root, f"{at}/Masks/Consensus.nii.gz", *raters)
    touch(root, "Testing/Center_01/Patient_01/Preprocessed_Data/FLAIR_preprocessed.nii.gz")
    touch(root, "Testing/Center_01/Patient_01/Masks/Consensus.nii.gz")


def table(root):
    touch(root, "scans/a.nii.gz", "scans/b.nii.gz", "masks/a.nii.gz")
    text(
        root / "cases.csv",
        "id,image:ct,label,patient,age,sex,group",
        "s1,scans/a.nii.gz,masks/a.nii.gz,p1,63,f,sick",
        "p2_visit2,scans/b.nii.gz,,,n/a,m,healthy",
    )


def ixi(root):
    touch(root, "IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T2/IXI002-Guys-0828-T2.nii.gz")
    touch(root, "IXI-T1/IXI012-HH-1211-T1.nii.gz", "IXI-DTI/IXI012-HH-1211-DTI-00.nii.gz")
    text(
        root / "IXI.csv",
        '"IXI_ID","SEX_ID (1=m, 2=f)","HEIGHT","AGE"',
        "2,2,164,35.8",
        "12,1,175,",
        "12,1,175,38.78",
    )


def mood(root):
    touch(root, "brain/brain_train/00000.nii.gz", "brain/toy/toy_0.nii.gz")
    touch(root, "abdom/abdom_train/00000.nii.gz", "brain/toy_label/pixel/toy_0.nii.gz")
    text(root / "brain/toy_label/sample/toy_0.nii.gz.txt", "1")


def oct2017(root):
    touch(root, "OCT2017/train/NORMAL/NORMAL-1001666-1.jpeg", "OCT2017/train/CNV/CNV-81630-6.jpeg")
    touch(root, "OCT2017/test/CNV/CNV-81630-6.jpeg", "OCT2017/val/DME/DME-9583225-1.jpeg")


CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture,Support Devices"


def chexpert(root):
    at = "CheXpert-v1.0-small"
    names = ("patient00001/study1/view1_frontal.jpg", "patient00002/study1/view1_frontal.jpg")
    names += ("patient00002/study1/view2_lateral.jpg", "patient00003/study1/view1_frontal.jpg")
    touch(root, *(f"{at}/train/{n}" for n in names))
    text(
        root / at / "train.csv",
        CHEXPERT,
        f"{at}/train/{names[0]},Female,68,Frontal,AP,1.0,,,1.0",
        f"{at}/train/{names[1]},Male,87,Frontal,AP,,1.0,0.0,",
        f"{at}/train/{names[2]},Male,87,Lateral,,,-1.0,,1.0",
    )


GRAZPED = "filestem,patient_id,gender,age,ao_classification,cast,fracture_visible,pixel_spacing"


def grazped(root):
    for stem in ("0001_1_01_WRI-L1_M014", "0002_2_01_WRI-R2_F009", "0003_3_01_WRI-R1_F010"):
        (root / "images_part1").mkdir(parents=True, exist_ok=True)
        grey = np.arange(8 * 10, dtype=np.uint16).reshape(10, 8) * 500
        Image.fromarray(grey).save(root / f"images_part1/{stem}.png")
    text(
        root / "dataset.csv",
        GRAZPED,
        "0001_1_01_WRI-L1_M014,1,M,14.1,23r-M/2.1,,1,0.144",
        "0002_2_01_WRI-R2_F009,2,F,9,,,,0.144",
        "0003_3_01_WRI-R1_F010,3,F,10,,1,,0.144",
    )
    # columns 2 to 6 and rows 1 to 4 of 8 x 10; the word on the picture is no finding
    text(
        root / "folder_structure/yolov5/labels/0001_1_01_WRI-L1_M014.txt",
        "3 0.5 0.25 0.5 0.3",
        "8 0.9 0.9 0.1 0.1",
    )


HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<encoding><encodedSpace><matrixSize><x>16</x><y>6</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>8</x><y>6</y><z>1</z></matrixSize>
<fieldOfView_mm><x>4</x><y>6</y><z>5</z></fieldOfView_mm></reconSpace></encoding>
</ismrmrdHeader>"""
ROWS = "file,slice,study_level,x,y,width,height,label"


def fastmri(root, header=HEADER, acquisition="AXFLAIR"):
    h5py = pytest.importorskip("h5py")
    slices = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    for part, stem in (("train", "file_1"), ("train", "file_2"), ("val", "file_3")):
        (root / f"multicoil_{part}").mkdir(parents=True, exist_ok=True)
        with h5py.File(root / f"multicoil_{part}/{stem}.h5", "w") as file:
            file["reconstruction_rss"] = slices
            if header:
                file["ismrmrd_header"] = header
            file.attrs["acquisition"] = acquisition
            file.attrs["patient_id"] = "p" if part == "train" else "q"
    with h5py.File(root / "multicoil_train/file_4.h5", "w") as file:
        file["kspace"] = slices
    text(
        root / "Annotations/brain.csv",
        ROWS,
        "file_1,0,No,1,2,3,2,Mass",
        "file_1,1,No,2,2,3,2,Mass",
        "file_1,1,No,2,2,3,2,Edema",
        "file_1,3,No,2,2,3,2,Mass",
        "file_1,3,No,0,0,1,1,Possible artifact",
        "file_2,0,Yes,,,,,Normal for age",
    )
    text(root / "Annotations/brain_file_list.csv", "file_1", "file_2")


XML = """<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{sessions}
</LidcReadMessage>"""
ROI = "<roi><imageZposition>{z}</imageZposition><inclusion>TRUE</inclusion>{points}</roi>"


def session(x0, x1, y0, y1, zs):
    """A reader with one contour (x0..x1, y0..y1) per slice and one small mark."""
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    point = "<edgeMap><xCoord>{}</xCoord><yCoord>{}</yCoord></edgeMap>"
    points = "".join(point.format(x, y) for x, y in corners)
    rois = "".join(ROI.format(z=z, points=points) for z in zs)
    small = ROI.format(z=zs[0], points=point.format(0, 0))
    marks = (
        f"<unblindedReadNodule><noduleID>{i}</noduleID>{r}</unblindedReadNodule>"
        for i, r in enumerate((rois, small))
    )
    return f"<readingSession>{''.join(marks)}</readingSession>"


def series(folder, kind="CT", slices=4):
    """Axial slices of 10 x 8 pixels, 0.5 mm, every 2 mm from z = -20."""
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(slices):
        array = np.full((1, 8, 10), 10 * k, np.int16)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.5, 2.0))
        tags = {
            "0008|0060": kind,
            "0020|000e": "1.2.3",
            "0020|000d": "1.2",
            "0008|0018": f"1.2.3.{9 - k}",
            "0020|0032": f"-1\\-2\\{-20 + 2 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "2",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{9 - k:03d}.dcm"))
        writer.Execute(image)


def lidc(root):
    inner = root / "LIDC-IDRI/LIDC-IDRI-0001/01-01-2000-30178"
    series(inner / "3000566-03192")
    series(inner / "3000923-62357", kind="DX", slices=1)
    sessions = (
        session(2, 6, 1, 5, (-18, -16)),
        session(2, 7, 1, 5, (-18, -16)),
        session(3, 7, 2, 5, (-16,)),
        session(8, 9, 6, 7, (-20,)),
    )
    text(inner / "3000566-03192/069.xml", XML.format(sessions="".join(sessions)))
    touch(root, "LIDC-IDRI/LICENSE.txt")


NODULES = ((-1.0, -0.5, -17.0, 3.1), (1.2, 0.4, -19.5, 0.2))  # x, y, z along L, P, S; diameter


def luna16(root):
    """Two series; one has a nodule of three millimetres and one of less than a voxel."""
    import SimpleITK as sitk

    for folder, name in (("subset0", "1.2.7"), ("subset1", "1.2.8"), ("seg-lungs", "1.2.7")):
        (root / folder).mkdir(parents=True)
        values = np.random.default_rng(0).integers(-900, 100, (6, 8, 10)).astype(np.int16)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((0.5, 0.7, 1.5))
        image.SetOrigin((-2.5, -3.0, -21.0))
        if name == "1.2.7":  # some series of LUNA16 are mirrored
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            image.SetOrigin((2.0, 2.0, -21.0))
        sitk.WriteImage(image, str(root / folder / f"{name}.mhd"))
    lines = [",".join(("1.2.7", *map(str, nodule))) for nodule in NODULES]
    text(root / "annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", *lines)
    text(root / "annotations_excluded.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm")
    text(root / "candidates_V2.csv", "seriesuid,coordX,coordY,coordZ,class", "1.2.7,0,0,-18,0")


SETS = {
    f.__name__: f
    for f in (
        *(brats, atlas, wmh, mslub, msseg2008, msseg2015, msseg2016, table, ixi, mood),
        *(oct2017, chexpert, grazped, fastmri, lidc, luna16),
    )
}


def bids(root):
    at = "sub-01/ses-1/anat/sub-01_ses-1"
    touch(root, f"{at}_T1w.nii.gz", f"{at}_FLAIR.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    touch(root, "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz")
    at = "derivatives/readers/sub-02/anat/sub-02_label-lesion"
    touch(root, *(f"{at}_{w}.nii.gz" for w in ("reader-1_mask", "reader-2_mask", "votes")))
    text(root / "participants.tsv", "participant_id\tage\tsex", "sub-01\t63\tF", "sub-02\t40\tM")


def datalist(root):
    touch(root, "scans/a.nii.gz", "scans/b.nii.gz", "masks/a.nii.gz")
    cases = [{"image": "scans/a.nii.gz", "label": "masks/a.nii.gz"}, {"image": "scans/b.nii.gz"}]
    (root / "dataset.json").write_text(json.dumps({"training": cases}))


def folder(root):
    touch(root, "p1_T1w.nii.gz", "p1_FLAIR.nii.gz", "p1_mask.nii.gz", "p2_T1w.nii.gz")
    touch(root, "images/p3_T1w.nii.gz", "images/p4_T1w.nii.gz", "labels/p4_T1w.nii.gz")
    words = ("reader-1_mask", "reader-2_mask", "votes")
    touch(root, *(f"labels/p3_{word}.nii.gz" for word in words))


def nnunet(root):
    for case in ("a_001", "a_002"):
        touch(root, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz")
        touch(root, f"labelsTr/{case}.nii.gz")
    touch(root, "imagesTs/a_003_0000.nii.gz", "imagesTs/a_003_0001.nii.gz")
    names = {"channel_names": {"0": "T1w", "1": "FLAIR"}, "file_ending": ".nii.gz"}
    text(root / "dataset.json", json.dumps({**names, "labels": {"background": 0, "lesion": 1}}))


def numbered(root):
    for case in ("a_001", "a_002"):
        touch(root, f"{case}_0000.nii.gz", f"{case}_0001.nii.gz")


CONVENTIONS = {f.__name__: f for f in (bids, datalist, folder, nnunet, numbered)}
