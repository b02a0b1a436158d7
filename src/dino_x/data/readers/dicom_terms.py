"""Words of the DICOM standard that may leave a header. Anything else in their place is dropped.

These elements are text, and people type into text: only what the standard defines is let through,
so that no name can travel in them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from pydicom.multival import MultiValue


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# PS3.3 C.7.3.1.1.1, those in use and the retired ones that old files have.
MODALITIES = _words(
    """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM
    HC HD IO IOL IVOCT IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS
    OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN
    RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC
    AS CD CF CP CS DD DF DM DR DS EC FA FS LP MA MS OPR ST TEMP VF
    """
)

# PS3.16 Annex L, the column "Body Part Examined", with the synonyms that are common.
BODY_PARTS = _words(
    """
    ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA APPENDIX ARM AXILLA BACK BLADDER BRAIN BREAST
    BRONCHUS BUTTOCK CALCANEUS CALF CARDIAC CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN
    CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE
    DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMORALARTERY FEMUR FINGER FOOT
    FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS ILEUM ILIUM IAC JAW JEJUNUM KIDNEY
    KNEE LARYNX LEG LIVER LSPINE LSSPINE LUMBOSACRAL LUNG MAXILLA MEDIASTINUM MOUTH NECK
    NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS
    PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RIB SACRUM SCALP SCAPULA SCLERA SCROTUM
    SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TARSUS TESTIS
    THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA
    UPRURINARYTRACT URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA
    """
)

# PS3.3 C.7.6.3.1.2.
PHOTOMETRICS = _words(
    """
    MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_422 YBR_PARTIAL_420 YBR_ICT
    YBR_RCT XYB ARGB CMYK HSV
    """
) | {"PALETTE COLOR"}

# PS3.3 C.7.6.1.1.2 and the modalities' own, with words of vendors that say what an image shows.
IMAGE_TYPES = _words(
    """
    ORIGINAL DERIVED MIXED PRIMARY SECONDARY AXIAL LOCALIZER LOCALISER SCOUT SURVEY TOPOGRAM MPR MIP
    MINIP PROJECTION REFORMATTED RESAMPLED VOLUME LABEL OVERVIEW THUMBNAIL RESAMPLED NONE ADDITION
    SUBTRACTION DIVISION AVERAGE MOSAIC ADC EADC FA COLFA TENSOR TRACEW DIFFUSION PERFUSION CBF CBV
    RCBF RCBV RELCBF RELCBV MTT TTP TMAX KTRANS PHASE VELOCITY MAGNITUDE REAL IMAGINARY M P R I
    FFE SE IR ND NORM DIS2D DIS3D DIS3D FM IN_PHASE OUT_PHASE OPP_PHASE WATER FAT STATIC DYNAMIC
    GATED TOMO RECON EMISSION TRANSMISSION WHOLE_BODY SCREENSHOT SCREEN_SAVE VOI POST_CONTRAST
    SINGLE_PLANE BIPLANE STEREO_L STEREO_R SINGLE_A SINGLE_B CT_SOM5 SPI VNC IODINE_MAP MONO
    EFF_ATOMIC_NUM ELECTRON_DENSITY MAT_FRACTIONAL MAT_SPECIFIC PROP_MAP T1_MAP T2_MAP FIELD_MAP
    PHASE_MAP ADC_MAP FMRI FAT_FRACTION STIFFNESS TOMOSYNTHESIS GENERATED_2D DOSE OTHER
    """
) | {"SCREEN SAVE", "PROJECTION IMAGE", "T1 MAP", "T2 MAP", "T2 STAR MAP", "PHASE MAP", "B0 MAP"}


def first(value: Any) -> str:
    """The first word of an element in capitals; "" where there is none.

    >>> first("linear "), first(["hu", "x"]), first(None)
    ('LINEAR', 'HU', '')
    """
    if isinstance(value, list | tuple | MultiValue):
        value = value[0] if len(value) else None
    return str(value or "").strip(" \0").upper()


def term(value: Any, known: Collection[str]) -> str | None:
    """The value if it is one of the words, else None.

    >>> term("Chest ", BODY_PARTS), term("ZEBEDEE", BODY_PARTS), term(None, BODY_PARTS)
    ('CHEST', None, None)
    """
    word = str(value or "").strip(" \0").upper()
    return word if word in known else None


def number(value: Any) -> float | None:
    """The first number of an element, or None where there is none."""
    if isinstance(value, list | MultiValue):
        value = value[0] if len(value) else None
    try:
        number = decimal(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def decimal(value: Any) -> float:
    """A number that may be text, and may have a comma where the standard wants a point.

    >>> decimal("-1024,5 "), decimal(2)
    (-1024.5, 2.0)

    Raises: TypeError or ValueError for anything else.
    """
    if isinstance(value, str):
        value = value.strip(" \0").replace(",", ".")
    return float(value)


def numbers(value: Any, count: int) -> list[float] | None:
    """An element of exactly `count` finite numbers, or None."""
    try:
        found = [decimal(part) for part in value]
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None
