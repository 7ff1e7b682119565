from flows.report.data import ReportData
def render_html(data: ReportData) -> str:
    return repr(data)
