"""One small valid annotation file of each tool and service, of images a.png, b.png, c.png of 40 x 30."""

from __future__ import annotations

LABELME = {"shapes": [
    {"label": "a", "points": [[1, 2], [5, 6]], "shape_type": "rectangle", "group_id": None},
    {"label": "b", "points": [[1, 2], [5, 6], [7, 9]], "shape_type": "polygon", "group_id": 3},
    {"label": "b", "points": [[1, 2], [5, 6]], "shape_type": "circle"},
], "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40}  # fmt: skip
STUDIO = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 2, "updated_at": "x", "result": [
    {"id": "r", "type": "rectanglelabels", "original_width": 40, "original_height": 30,
     "value": {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["cat"]}},
    {"id": "s", "type": "polygonlabels", "original_width": 40, "original_height": 30,
     "value": {"points": [[1, 2], [30, 40], [5, 6]], "polygonlabels": ["cat"]}},
]}]}]  # fmt: skip
VOTT = {"tags": [{"name": "cat"}], "assets": {"k": {
    "asset": {"name": "a.png", "path": "file:a.png", "size": {"width": 40, "height": 30}},
    "regions": [{"type": "POLYGON", "tags": ["cat"], "points": [{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 5, "y": 9}],
                 "boundingBox": {"left": 1, "top": 2, "width": 4, "height": 7}}],
}}}  # fmt: skip
CREATEML = [{"image": "a.png", "annotations": [
    {"label": "cat", "coordinates": {"x": 9, "y": 9, "width": 3, "height": 4}}]}]  # fmt: skip
CVAT = """<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.png" width="40" height="30"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9" rotation="30"/>
<polygon label="cat" points="1,2;9,2;9,9"/><ellipse label="cat" cx="9" cy="9" rx="3" ry="4"/></image></annotations>"""
OLD_LABELME = """<annotation><filename>a.png</filename><object><name>cat</name><deleted>0</deleted><polygon><pt><x>1</x>
<y>2</y></pt><pt><x>5</x><y>9</y></pt></polygon></object><imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>
</annotation>"""
TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,1,2,9,9\na.png,40,30,dog,3,4,8,9\n"
OPEN = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\na,x,/m/c,1,0.1,0.5,0.2,0.9,1\n"

VIA = {"a.png9": {"filename": "a.png", "size": 9, "file_attributes": {}, "regions": [
    {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 9, "height": 8},
     "region_attributes": {"class": "cat"}},
    {"shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [2, 2, 9]},
     "region_attributes": {"class": {"cat": True}}}]}}  # fmt: skip
VIA_3 = {
    "project": {"vid_list": ["1"]}, "attribute": {"1": {"aname": "class", "options": {"0": "cat"}}},
    "file": {"1": {"fid": 1, "fname": "a.png"}}, "view": {"1": {"fid_list": ["1"]}},
    "metadata": {"1_q": {"vid": "1", "xy": [2, 5, 6, 10, 8], "av": {"1": "0"}}},
}  # fmt: skip
VIA_TABLE = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.png,9,{},1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":9,""height"":8}","{""class"":""cat""}"\n'
)
MANIFEST = {
    "source-ref": "s3://b/a.png", "job-metadata": {"class-map": {"0": "cat"}, "type": "groundtruth/object-detection"},
    "job": {"image_size": [{"width": 40, "height": 30}], "annotations": [
        {"class_id": 0, "left": 1, "top": 2, "width": 9, "height": 8}]},
}  # fmt: skip
HUB = {
    "file_name": "a.png",
    "width": 40,
    "height": 30,
    "objects": {"bbox": [[1, 2, 9, 8]], "categories": ["cat"]},
}
SUPERVISELY = {"size": {"height": 30, "width": 40}, "tags": [], "objects": [
    {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [9, 8]], "interior": []}},
    {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": "eJwBAAD//w==", "origin": [1, 2]}}]}  # fmt: skip
ODGT = {"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 9, 8], "extra": {"occ": 0}}]}
BDD = [{"name": "a.png", "labels": [{"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 9, "y2": 8}}]}]
BOX_LIST = "a.png 1,2,9,8,0 3,4,9,9,1\n"
KITTI = 2 * "Car 0.00 0 -1.57 1.5 2 9.5 8 1.5 1.6 3.7 1 1.5 8.4 -1.56\n"
VISDRONE = "1,2,9,8,1,4,0,0\n3,4,9,9,1,1,0,1\n0,0,3,3,0,0,0,0\n"
WIDER = "a.png\n2\n1 2 9 8 0 0 0 0 0 0\n3 4 9 9 0 0 0 1 0 0\n"
MOT = "1,1,2,3,9,8,1,1,1\n1,2,3,4,9,9,0,8,1\n"
OID = "Human face 1 2 9 8\nHuman face 3 4 9 9\n"
