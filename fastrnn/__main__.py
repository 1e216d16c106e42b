from fastrnn.info import report

print(report())
